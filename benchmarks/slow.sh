#!/usr/bin/env bash
# slowhttptest against a gateway with default limits while normal clients run: how many of their calls succeed.
#     benchmarks/slow.sh [SECONDS] [CONNECTIONS]      default: 30 seconds each, 1,000 connections
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-30}
connections=${2:-1000}
command -v slowhttptest >/dev/null || { echo "slow.sh: slowhttptest is not installed" >&2; exit 1; }

matched=/api/v2/conversations/web/instances/c1/participants/p1
steady() { # name, then slowhttptest's own options, the path last
    local name=$1 path=${*: -1}
    .venv/bin/python -m benchmarks.steady --name "$name" --seconds $((seconds + 10)) -- \
        slowhttptest "${@:2:$#-2}" -c "$connections" -r $((connections / 4 + 1)) -l "$seconds" -p 5 \
        -u "http://127.0.0.1:{port}$path"
}

.venv/bin/python -m benchmarks.steady --head
steady "slow headers" -H -i 5 /api/v2/users/me
steady "slow body, passed through" -B -t POST -i 5 -s 100000 -x 20 /sink
steady "slow body, matched" -B -t PATCH -i 5 -s 100000 -x 20 "$matched"
steady "slow read, small replies" -X -n 2 -z 8 -w 1 -y 64 -k 10 /api/v2/users/me
steady "slow read, large reply" -X -n 2 -z 32 -w 10 -y 512 /bulk/10000000
