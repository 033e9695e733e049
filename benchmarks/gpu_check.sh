#!/bin/sh
# Checks the server's engine on a CUDA device: right at every split, and how fast. Under eight
# minutes, from a bare checkout with torch, transformers, grpcio and numpy; nothing is downloaded.
# The last line is JSON.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.server.gpu_check "$@"
