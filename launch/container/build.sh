#!/usr/bin/env bash
# Build the image of this package and turn it into the one file that pyxis starts containers from.
#
#   launch/container/build.sh [FOLDER]        (default: this folder; a file system that all nodes see)
#
# Needs docker (or podman: DOCKER=podman) for the image, and enroot for the file.  Give the file's path as
# environment.container.image in a cluster profile.
# Exit codes: 0; 2 something that it needs is missing, and the message names it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder="${1:-.}"
docker="${DOCKER:-docker}"
version="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' megatron_growth/__init__.py)"
image="megatron-growth:${version}"
target="${folder%/}/megatron-growth-${version}.sqsh"

for tool in "${docker}" enroot; do
  if ! command -v "${tool}" >/dev/null; then
    echo "container: ${tool} is not here; build on a machine that has docker (or DOCKER=podman) and enroot" >&2
    exit 2
  fi
done
if [[ -e "${target}" ]]; then
  echo "container: ${target} is there already; remove it, or give another folder" >&2
  exit 2
fi

"${docker}" build --file launch/container/Dockerfile --tag "${image}" .
case "${docker##*/}" in
  podman) source="podman://${image}" ;;
  *) source="dockerd://${image}" ;;
esac
enroot import --output "${target}" "${source}"
echo "ready: in the cluster profile, environment: {container: {image: $(realpath "${target}")}}"
