FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gateway ./gateway
RUN python -m pip wheel --no-deps --wheel-dir /wheels .
RUN python -m venv /opt/gateway \
 && /opt/gateway/bin/python -m pip install -c constraints.txt /wheels/*.whl

FROM python:3.12-slim
RUN groupadd --gid 10001 gateway \
 && useradd --uid 10001 --gid gateway --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
 && install --directory --owner=gateway --group=gateway --mode=0750 /var/log/gateway \
 && install --directory --mode=0755 /etc/gateway
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_ADMIN_HOST=0.0.0.0 \
    GATEWAY_AUDIT=/var/log/gateway/rewrites.jsonl
USER 10001:10001
EXPOSE 8080 9901
STOPSIGNAL SIGTERM
# http.client rather than urllib: it never goes through a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.getenv('GATEWAY_ADMIN_PORT', '9901')), timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["run", "--config", "/etc/gateway/config.yaml"]
