#!/usr/bin/env bash
# The container's acceptance: builds the CPU image for real, runs it as an operator would, and breaks it.
#
#   docker/accept.sh                 with Docker or podman; with buildah (as root) where there is neither
#   ENGINE=buildah docker/accept.sh  with this one
#
# PYTHON         a Python with tests/requirements.txt (default: python3); Chromium must be installed, too
# IMAGE          an image that is there already: nothing is built
# BUILD_OPTIONS  more options of the build, such as --build-arg PYTHON_IMAGE=... or mounts for a registry of your own
# BUILDAH        buildah with its global options (default: buildah)
# MODELS         the folder to mount as models (default: models)
# IDLE_SECONDS   how long nothing happens before the log is looked at (default: 120)
#
# Ends with status 0 when all holds; prints each check and, at the end, the log's last 30 lines.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${ENGINE:-}
for candidate in docker podman buildah; do
  if [ -z "$engine" ] && command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then
    engine=$candidate
  fi
done
if [ -z "$engine" ]; then
  echo "None of docker, podman and buildah works here." >&2
  exit 2
fi

image=${IMAGE:-step-audio-ui-opt:cpu}
read -r -a options <<<"${BUILD_OPTIONS:-}"
read -r -a buildah <<<"${BUILDAH:-buildah}"
if [ -z "${IMAGE:-}" ]; then
  version=$(git describe --always --dirty 2>/dev/null || echo unknown)
  options+=(--build-arg "VERSION=$version" --target cpu --tag "$image")
  case $engine in
    buildah) "${buildah[@]}" bud --isolation chroot --format docker --layers "${options[@]}" . ;;
    *) "$engine" build "${options[@]}" . ;;
  esac
fi
exec "${PYTHON:-python3}" docker/accept.py "$engine" "$image"
