# By its digest: docker build --build-arg BASE=python:3.11-slim@sha256:... (why none stands here: docs/operations.md).
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# A package index of one's own, and the authority of its certificate (--secret id=ca,src=ca.pem with PIP_CERT).
ARG PIP_INDEX_URL
ARG PIP_CERT
# Anything: with what `tracing` and the repair `validate` need.
ARG EXTRAS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt constraints-extras.txt constraints-build.txt ./
# Wheels only: what builds an sdist would come without a hash.
RUN --mount=type=secret,id=ca \
    python -m pip install --require-hashes --only-binary :all: -r constraints-build.txt \
 && python -m venv /opt/gateway \
 && /opt/gateway/bin/python -m pip install --require-hashes --only-binary :all: -r "constraints${EXTRAS:+-extras}.txt"
COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/gateway/bin/python -m pip install --no-deps /wheels/*.whl \
 && /opt/gateway/bin/python -m pip check

FROM ${BASE}
RUN groupadd --gid 10001 gateway \
 && useradd --uid 10001 --gid gateway --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
 && install --directory --owner=gateway --group=gateway --mode=0750 /var/log/gateway /var/lib/gateway \
 && install --directory --mode=0755 /etc/gateway
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_ADMIN_HOST=0.0.0.0 \
    GATEWAY_AUDIT=/var/log/gateway/rewrites.jsonl \
    GATEWAY_CALLERS=/var/lib/gateway/callers.sqlite3
WORKDIR /var/lib/gateway
USER 10001:10001
EXPOSE 8080 9901
STOPSIGNAL SIGTERM
# http.client rather than urllib: it never goes through a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.getenv('GATEWAY_ADMIN_PORT', '9901')), timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["run", "--config", "/etc/gateway/config.yaml"]
