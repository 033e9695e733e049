# The cloud server on an NVIDIA GPU (needs the container toolkit on the host):
#   docker build -f deploy/docker/cloud-cuda.Dockerfile -t splitpoint-cloud:cuda .
#   docker run --gpus all -p 50051:50051 -v $PWD/bundle:/bundle:ro -v $PWD/secrets:/secrets:ro splitpoint-cloud:cuda
# User 10001 reads both. Where only you may read them, add --user "$(id -u)".
# Every option is a variable: -e SPLITPOINT_SERVE_KV_MEMORY=20GiB. An empty one unsets the image's.
ARG BASE=docker.io/library/python:3.12-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build
# A compiler for the codec's optional C kernel; it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# PyPI's torch brings the CUDA libraries, so the last stage needs no CUDA base.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://pypi.org/simple
RUN python -m venv /opt/splitpoint \
    && /opt/splitpoint/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "${TORCH}"
WORKDIR /src
COPY . .
RUN /opt/splitpoint/bin/pip install --no-cache-dir ".[cloud]"
COPY deploy/docker/health.py /opt/splitpoint/health.py

# hadolint ignore=DL3006
FROM ${BASE}
# The codec's kernel and torch's CPU parts multiply with OpenMP.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-create-home --shell /usr/sbin/nologin --uid 10001 splitpoint
COPY --from=build /opt/splitpoint /opt/splitpoint
# torch asks for a cache folder at import; one that is there needs no write. Keys and tokens are
# paths here, not contents.
# hadolint ignore=DL3064
ENV PATH=/opt/splitpoint/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 \
    TORCHINDUCTOR_CACHE_DIR=/tmp \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SPLITPOINT_SERVE_DEVICE=cuda \
    SPLITPOINT_SERVE_LISTEN=0.0.0.0:50051 \
    SPLITPOINT_SERVE_METRICS=0.0.0.0:9090 \
    SPLITPOINT_SERVE_EXPOSE_METRICS=1 \
    SPLITPOINT_SERVE_TLS_CERT=/secrets/tls.crt \
    SPLITPOINT_SERVE_TLS_KEY=/secrets/tls.key \
    SPLITPOINT_SERVE_TOKEN_FILE=/secrets/tokens \
    SPLITPOINT_SERVE_LOG=json
USER 10001
EXPOSE 50051 9090
# The metrics port says what gRPC health says, without a certificate or a token.
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python", "/opt/splitpoint/health.py", "SPLITPOINT_SERVE_METRICS"]
# SIGTERM drains: running sessions end or are handed back.
STOPSIGNAL SIGTERM
ENTRYPOINT ["splitpoint", "serve", "/bundle"]
