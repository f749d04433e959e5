"""The table of what may be missing: what each supported installation gets; reading it imports nothing heavy."""

import importlib.metadata
import subprocess
import sys

import pytest

from megatron_growth.backend import installation, start
from megatron_growth.backend.installation import INSTALLATIONS, Installation
from megatron_growth.backend.stand_ins import environment, flags, missing_words, ranks_of_a_layer, stand_ins
from megatron_growth.errors import UnsupportedError, UserError
from megatron_growth.testing import run_distributed

NO_APEX = {"--no-gradient-accumulation-fusion"}
NO_ENGINE = {"--transformer-impl", "--no-rope-fusion", "--no-persist-layer-norm"}
NO_KERNELS = {"--no-masked-softmax-fusion"}
HOST = {"--distributed-backend"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("container", set()),
        ("gpu", NO_APEX),
        ("pip", NO_APEX | NO_ENGINE | NO_KERNELS),
        ("host", NO_APEX | NO_ENGINE | NO_KERNELS | HOST),
    ],
)
def test_flags_of_the_supported_installations(name, wanted):
    assert set(flags(stand_ins(INSTALLATIONS[name]))) == wanted


def test_tensor_parallelism_before_blackwell_needs_one_queue():
    hopper, blackwell = Installation("H100", (9, 0)), Installation("B200", (10, 0))
    assert environment(stand_ins(hopper, 2)) == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert environment(stand_ins(hopper, 1)) == environment(stand_ins(blackwell, 2)) == {}
    assert environment(stand_ins(Installation(), 1)) == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def test_our_adam_stands_in_where_there_is_neither_of_the_two():
    def of(here):
        return any("Adam" in row.missing for row in stand_ins(here))

    gpu = {"gpu": "H100", "capability": (9, 0)}
    assert [
        of(Installation(**gpu, apex=apex, transformer_engine=te)) for apex in (False, True) for te in ("", "2")
    ] == [
        *(True, False),
        *(False, False),
    ]
    # Kernels that are installed cannot run on the host.
    assert of(Installation(apex=True, transformer_engine="2.12.0"))


def test_words_that_were_given_are_not_added():
    rows = stand_ins(INSTALLATIONS["pip"])
    assert missing_words(rows, ["--transformer-impl=local", "--no-rope-fusion"]) == [
        *("--no-persist-layer-norm", "--no-masked-softmax-fusion", "--no-gradient-accumulation-fusion")
    ]
    assert missing_words(rows, [])[:2] == ["--transformer-impl", "local"]


@pytest.mark.parametrize(
    ("argv", "size"),
    [
        ([], 1),
        (["--tensor-model-parallel-size", "4"], 4),
        (["--tensor-model-parallel-size=2", "--seed", "8"], 2),
        (["--tensor-model-parallel-size", "4", "--tensor-model-parallel-size", "1"], 1),
        (["--tensor-model-parallel-size"], 1),
        (["--context-parallel-size=2"], 2),
        (["--context-parallel-size", "2", "--tensor-model-parallel-size", "4"], 8),
    ],
)
def test_ranks_of_a_layer_by_a_command_line(argv, size):
    """Megatron asks for the same variable under tensor and under context parallelism."""
    assert ranks_of_a_layer(argv) == size


def test_the_table_is_read_without_torch_and_megatron():
    code = (
        "import sys\n"
        "from megatron_growth.backend.installation import INSTALLATIONS, detect\n"
        "from megatron_growth.backend.stand_ins import flags, stand_ins\n"
        "flags(stand_ins(INSTALLATIONS['pip'])); flags(stand_ins(detect()))\n"
        "sys.exit(f'imported {heavy}' if (heavy := {'torch', 'megatron.core'} & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


def _installed(monkeypatch, **versions):
    def version(name):
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_versions_that_do_not_go_together(monkeypatch):
    _installed(
        monkeypatch, torch="2.11.0", transformer_engine="2.14.0", nvidia_cublas="13.1.0.3", megatron_core="0.19.2"
    )
    ((what, fix),) = installation.conflicts()
    assert "2.14.0" in what
    assert "torch 2.11.0" in what
    assert "2.12.0" in fix
    _installed(
        monkeypatch, torch="2.11.0", transformer_engine="2.12.0", nvidia_cublas="13.1.0.3", megatron_core="0.19.2"
    )
    assert installation.conflicts() == []
    _installed(monkeypatch, transformer_engine="2.12.0", transformer_engine_cu13="2.11.0", megatron_core="0.18.2")
    assert [fix for _, fix in installation.conflicts()] == [
        *("pip install 'transformer-engine-cu13==2.12.0'", "pip install 'megatron-core>=0.19.2,<0.20'")
    ]


def test_a_transformer_engine_that_cannot_be_loaded_is_named_before_a_gpu_is_used(monkeypatch):
    _installed(
        monkeypatch, torch="2.11.0", transformer_engine="2.14.0", nvidia_cublas="13.1.0.3", megatron_core="0.19.2"
    )
    broken = ImportError("undefined symbol: cublasLtGroupedMatrixLayoutInit_internal\nmore")

    def import_module(name):
        raise broken

    monkeypatch.setattr(installation.importlib, "import_module", import_module)
    with pytest.raises(UnsupportedError, match="undefined symbol") as caught:
        installation.transformer_engine(gpu=True)
    assert "2.12.0" in caught.value.fix
    assert "more" not in str(caught.value)
    assert installation.transformer_engine(gpu=False) == ""


def _start():
    import os

    from megatron_growth.backend import cpu

    cpu.uninstall()
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    words = start.prepare(["--seed", "1", "--no-rope-fusion"])
    return words, cpu.installed(), os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]


def test_a_start_on_the_host_is_made_ready():
    words, installed, connections = run_distributed(_start, 1)[0]
    assert words[:3] == ["--seed", "1", "--no-rope-fusion"]
    assert set(words[3:]) >= {"--transformer-impl", "local", "--distributed-backend", "gloo", *NO_APEX}
    assert words.count("--no-rope-fusion") == 1
    assert installed
    assert connections == "1"


def test_a_stage_is_launched_with_the_variables_of_its_layout(monkeypatch, tmp_path):
    from megatron_growth.backend import nvml
    from megatron_growth.run.torchrun import command_of
    from megatron_growth.run.torchrun import environment as launched

    def of(tensor_parallel, capability, inherited):
        monkeypatch.setattr(nvml, "devices", lambda: (nvml.Device("GPU", capability, 0),))
        command = command_of(8, ["--tensor-model-parallel-size", str(tensor_parallel)])
        return launched(command, "token", tmp_path, inherited).get("CUDA_DEVICE_MAX_CONNECTIONS")

    assert of(2, (9, 0), {}) == "1"
    assert of(2, (9, 0), {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}) == "32"
    assert of(1, (9, 0), {}) is of(2, (10, 0), {}) is None


def test_no_gpu_is_seen_where_all_are_hidden(monkeypatch):
    from megatron_growth.backend import nvml

    monkeypatch.setattr(nvml, "_loaded", lambda _: pytest.fail("the driver was asked"))
    for hidden in ("", "-1"):
        nvml.devices.cache_clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert nvml.devices() == ()
    nvml.devices.cache_clear()


@pytest.mark.parametrize("word", ["--optimizer-cpu-offload", "--use-torch-fsdp2", "--log-straggler"])
def test_words_that_only_a_gpu_carries_out_are_refused_on_the_host(word, tmp_path):
    """At both starts, and with a fix that this command can take."""
    from megatron_growth import mistakes
    from megatron_growth.backend import cpu

    (tmp_path / "script.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match=word) as refused:
        start.refuse_impossible(installation.Installation(), ["--bf16", word])
    assert refused.value.fix == f"leave out {word} on this machine"
    try:
        with pytest.raises(UserError, match=word):  # which ends the process with 2, see test_mistakes.py
            cpu.main([str(tmp_path / "script.py"), word])
    finally:
        mistakes.uninstall()
        cpu.uninstall()
