# The page and its health checks on port 7860. Needs BuildKit, which Docker has by default since version 23.
#
#   docker build -t step-audio-ui-opt:cpu .                   the last stage: no GPU needed
#   docker build -t step-audio-ui-opt:cuda --target cuda .    for an NVIDIA GPU with driver 580 or newer
#
# The image runs alone: without weights mounted at /app/models it uses what the repository brings along. It needs no
# volume either, but without one at /app/cache, /app/data and /app/compiled these end with the container.
# docker/accept.sh builds the cpu image and proves all that the README says of it.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What both images share: everything but the libraries and the source.
FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="step-audio-ui-opt" \
      org.opencontainers.image.description="Voice cloning and editing with Step-Audio-EditX"
# ffmpeg reads what soundfile cannot: m4a, which is what phones record, and the sound of videos.
# tini is process 1: it hands signals on and buries the dead, whether or not the container is run with --init.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin stepaudio \
    && install --directory --owner=10001 --group=10001 /app/cache /app/data /app/compiled
WORKDIR /app
# DO_NOT_TRACK and the like: nothing in the image reports to anybody. ORT: ONNX Runtime, which does unless it is told.
# HF_HUB_OFFLINE: nothing is fetched behind the user's back; `python -m stepaudio download` does not go through it.
# NUMBA_CACHE_DIR: Numba keeps there what it compiled, for the next start; where it cannot write, it compiles anew.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONUTF8=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    NUMBA_CACHE_DIR=/app/compiled \
    STEPAUDIO_HOST=0.0.0.0
EXPOSE 7860
STOPSIGNAL SIGTERM
# Ready means: models loaded and warm. Real weights on a slow disk take minutes, hence the start period.
HEALTHCHECK --interval=30s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('STEPAUDIO_PORT', '7860') + '/health/ready', timeout=4)"]
USER 10001:10001
# -g: a signal reaches ffmpeg too, should one be at work.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["python", "app.py"]

# The libraries, in a layer that only requirements.txt can change. pip stays behind with its cache.
FROM ${PYTHON_IMAGE} AS libraries
ARG PIP_INDEX_URL=https://pypi.org/simple
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt ./

# pip's cache is a mount of the build and no part of any layer, hence the exceptions from DL3042.
FROM libraries AS libraries-cuda
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --requirement requirements.txt

FROM libraries AS libraries-cpu
ARG TORCH_CPU_INDEX_URL=https://download.pytorch.org/whl/cpu
# The CPU build first; its version satisfies the pin, so that the second line leaves it alone.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --index-url "${TORCH_CPU_INDEX_URL}" "$(grep --only-matching '^torch==[^ ]*' requirements.txt)" \
    && pip install --requirement requirements.txt
# Half a gigabyte that no CPU runs: ONNX Runtime's kernels for CUDA, and what torch brings for those who compile it.
RUN packages="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -rf "${packages}"/onnxruntime/capi/libonnxruntime_providers_cuda.so \
              "${packages}"/onnxruntime/capi/libonnxruntime_providers_tensorrt.so \
              "${packages}"/torch/include "${packages}"/torch/test "${packages}"/torch/bin/test_* \
              "${packages}"/torch/bin/protoc*

# The source comes last: a change of it copies nothing else. --chmod, because COPY keeps the modes of the checkout,
# and one made under umask 077 would not be readable. It belongs to root: the program cannot change itself.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The language model's layers run in Triton kernels, and Triton builds what starts them with the C compiler that it
# finds at run time. Without one the plain layers run, and slower. It costs some 190 MB, of several GB.
USER root
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --mode=1777 /var/tmp/triton
USER 10001:10001
# Any user that the container runs may write there; where the rest is read-only, docker-compose.yml mounts a tmpfs.
ENV TRITON_CACHE_DIR=/var/tmp/triton
COPY --from=libraries-cuda /opt/venv /opt/venv
COPY --chmod=755 . .
ARG VERSION=unknown
LABEL org.opencontainers.image.version="${VERSION}"

FROM base AS cpu
COPY --from=libraries-cpu /opt/venv /opt/venv
COPY --chmod=755 . .
# Here, because a change of it would have all that stands behind it made anew.
ARG VERSION=unknown
LABEL org.opencontainers.image.version="${VERSION}"
