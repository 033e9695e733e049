# The edge: the local OpenAI-compatible API in front of a split model. No torch, for amd64 and arm64:
#   docker build -f deploy/docker/edge.Dockerfile -t splitpoint-edge .
#   docker run --network host -v $PWD/bundle:/bundle:ro -v $PWD/secrets:/secrets:ro \
#     -e SPLITPOINT_SERVER=cloud.example:50051 \
#     -e SPLITPOINT_TLS_CA=/secrets/ca.pem -e SPLITPOINT_TOKEN_FILE=/secrets/token splitpoint-edge
# A server on this machine without TLS needs neither of the two files.
FROM python:3.12-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python -m venv /opt/splitpoint && /opt/splitpoint/bin/pip install --no-cache-dir ".[edge,api]"

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 splitpoint
COPY --from=build /opt/splitpoint /opt/splitpoint
ENV PATH=/opt/splitpoint/bin:$PATH PYTHONUNBUFFERED=1 SPLITPOINT_SERVER=127.0.0.1:50051
USER 10001
EXPOSE 8000
# On the host's network the API stays on loopback.
ENV SPLITPOINT_LISTEN=127.0.0.1:8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen('http://' + os.environ['SPLITPOINT_LISTEN'] + '/health', timeout=4)"]
CMD ["sh", "-c", "exec splitpoint api /bundle --server \"$SPLITPOINT_SERVER\" --listen \"$SPLITPOINT_LISTEN\" ${SPLITPOINT_TLS_CA:+--tls-ca \"$SPLITPOINT_TLS_CA\"} ${SPLITPOINT_TOKEN_FILE:+--token-file \"$SPLITPOINT_TOKEN_FILE\"}"]
