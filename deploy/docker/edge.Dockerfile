# The edge: the local OpenAI-compatible API in front of a split model. No torch, for amd64 and arm64:
#   docker build -f deploy/docker/edge.Dockerfile -t splitpoint-edge .
#   docker run --network host -v $PWD/bundle:/bundle:ro -v $PWD/secrets:/secrets:ro \
#     -e SPLITPOINT_SERVER=cloud.example:50051 \
#     -e SPLITPOINT_TLS_CA=/secrets/ca.crt -e SPLITPOINT_TOKEN_FILE=/secrets/token splitpoint-edge
# A server on this machine without TLS needs neither of the two files. User 10001 reads both mounts.
# Where only you may read them, add --user "$(id -u)".
# Every option is a variable: -e SPLITPOINT_API_MAX_REQUESTS=2.
ARG BASE=docker.io/library/python:3.12-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python -m venv /opt/splitpoint && /opt/splitpoint/bin/pip install --no-cache-dir ".[edge,api]"
COPY deploy/docker/health.py /opt/splitpoint/health.py

# hadolint ignore=DL3006
FROM ${BASE}
RUN useradd --no-create-home --shell /usr/sbin/nologin --uid 10001 splitpoint
COPY --from=build /opt/splitpoint /opt/splitpoint
# On the host's network the API stays on loopback.
ENV PATH=/opt/splitpoint/bin:$PATH PYTHONUNBUFFERED=1 \
    SPLITPOINT_SERVER=127.0.0.1:50051 \
    SPLITPOINT_API_LISTEN=127.0.0.1:8000
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "/opt/splitpoint/health.py", "SPLITPOINT_API_LISTEN", \
         "SPLITPOINT_API_LISTEN_TLS_CERT", "SPLITPOINT_LISTEN_TLS_CERT"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["splitpoint", "api", "/bundle"]
