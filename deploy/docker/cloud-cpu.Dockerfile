# The cloud server on a CPU. Build from the repository's root:
#   docker build -f deploy/docker/cloud-cpu.Dockerfile -t splitpoint-cloud:cpu .
# Run with a bundle, a certificate and a token file mounted read-only:
#   docker run -p 50051:50051 -v $PWD/bundle:/bundle:ro -v $PWD/secrets:/secrets:ro splitpoint-cloud:cpu
FROM python:3.12-slim-bookworm AS build
# A compiler for the two optional C kernels; it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python -m venv /opt/splitpoint \
    && /opt/splitpoint/bin/pip install --no-cache-dir torch==2.13.0 \
       --index-url https://download.pytorch.org/whl/cpu \
    && /opt/splitpoint/bin/pip install --no-cache-dir ".[cloud]"

FROM python:3.12-slim-bookworm
# torch and the kernel multiply with OpenMP.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 splitpoint
COPY --from=build /opt/splitpoint /opt/splitpoint
ENV PATH=/opt/splitpoint/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 50051 9090
# SIGTERM drains: running sessions end or are handed back.
STOPSIGNAL SIGTERM
ENTRYPOINT ["splitpoint", "serve", "/bundle"]
CMD ["--listen", "0.0.0.0:50051", "--metrics", "0.0.0.0:9090", "--expose-metrics", \
     "--tls-cert", "/secrets/tls.crt", "--tls-key", "/secrets/tls.key", \
     "--token-file", "/secrets/tokens", "--log", "json"]
