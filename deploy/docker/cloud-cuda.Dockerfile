# The cloud server on an NVIDIA GPU (needs the container toolkit on the host):
#   docker build -f deploy/docker/cloud-cuda.Dockerfile -t splitpoint-cloud:cuda .
#   docker run --gpus all -p 50051:50051 -v $PWD/bundle:/bundle:ro -v $PWD/secrets:/secrets:ro splitpoint-cloud:cuda
# Not run by the project's own tests: they have no GPU.
FROM python:3.12-slim-bookworm
WORKDIR /src
COPY . .
# PyPI's torch brings the CUDA libraries.
RUN python -m venv /opt/splitpoint \
    && /opt/splitpoint/bin/pip install --no-cache-dir torch==2.13.0 \
    && /opt/splitpoint/bin/pip install --no-cache-dir ".[cloud]" \
    && useradd --system --uid 10001 splitpoint
ENV PATH=/opt/splitpoint/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /
USER 10001
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["splitpoint", "serve", "/bundle", "--device", "cuda"]
CMD ["--listen", "0.0.0.0:50051", "--metrics", "0.0.0.0:9090", "--expose-metrics", \
     "--tls-cert", "/secrets/tls.crt", "--tls-key", "/secrets/tls.key", \
     "--token-file", "/secrets/tokens", "--log", "json"]
