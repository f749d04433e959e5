#!/usr/bin/env bash
# Install what tests/slurm needs on Debian or Ubuntu: Slurm's daemons and clients, munge and shellcheck.
#
# Usage: ci/install-slurm.sh
#
# Safe to run again: does nothing when all is there.  It configures no cluster: ci/slurm-cluster.sh starts a private one,
# and without /etc/slurm/slurm.conf the packaged services stay off.
# Exit codes: 0 everything is installed; 1 something is missing and this user, or this system, cannot install it.
set -euo pipefail

declare -A package_of=(
  [slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client [munged]=munge [mungekey]=munge [shellcheck]=shellcheck
)

missing_packages() {
  local tool
  for tool in "${!package_of[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null || echo "${package_of[$tool]}"
  done | sort -u
}

mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -eq 0 ]; then
  echo "install-slurm: nothing to do"
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "install-slurm: missing ${missing[*]}; this script knows apt-get only, install them by hand" >&2
  exit 1
fi

run_as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
    echo "install-slurm: missing ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  run_as_root=(sudo -n)
fi

"${run_as_root[@]}" apt-get update -qq
"${run_as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"

mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -ne 0 ]; then
  echo "install-slurm: still missing after installation: ${missing[*]}" >&2
  exit 1
fi
echo "install-slurm: done"
