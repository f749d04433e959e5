"""`megatron-growth doctor`: what it says of machines that this one is not, and that it looks without breaking."""

import ctypes
import json

import pytest
import torch

from megatron_growth.backend import doctor, installation, nvml, start
from megatron_growth.backend.installation import INSTALLATIONS, Installation
from megatron_growth.cli.main import main
from megatron_growth.errors import UnsupportedError, UserError

H100 = nvml.Device("NVIDIA H100 80GB HBM3", (9, 0), 85520809984)
A100 = nvml.Device("NVIDIA A100-SXM4-80GB", (8, 0), 85899345920)


class Driver:
    """NVIDIA's library with two GPUs, as ctypes calls it."""

    def __init__(self, fails=()):
        for name in ("nvmlInit_v2", "nvmlShutdown", "nvmlDeviceGetHandleByIndex_v2"):
            setattr(self, name, lambda *_: 0)
        for name in fails:
            setattr(self, name, lambda *_: 1)

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetName(self, handle, name, size):  # noqa: N802
        name.value = H100.name.encode()
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):  # noqa: N802
        major._obj.value, minor._obj.value = 9, 0
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):  # noqa: N802
        memory._obj.total = H100.memory
        return 0

    def nvmlSystemGetDriverVersion(self, text, size):  # noqa: N802
        text.value = b"580.65.06"
        return 0


@pytest.fixture
def machine(monkeypatch):
    """Sets GPUs, Transformer Engine, Apex and torch's opinion."""

    def become(devices=(), engine="", apex=False, usable=True):
        nvml.devices.cache_clear()
        monkeypatch.setattr(nvml, "devices", lambda: tuple(devices))
        monkeypatch.setattr(nvml, "driver", lambda: "580.65.06" if devices else "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable and bool(devices))
        monkeypatch.setattr(installation, "transformer_engine", lambda gpu: engine if gpu else "")
        found = installation.importlib.util.find_spec
        monkeypatch.setattr(
            installation.importlib.util,
            "find_spec",
            lambda name: (apex or None) if name == "fused_weight_gradient_mlp_cuda" else found(name),
        )

    return become


def told(capsys):
    """(exit code, document) of `doctor --json`."""
    code = main(["doctor", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_this_machine_can_train_on_the_host_at_least(capsys):
    code, document = told(capsys)
    assert code == 0
    assert {"gpu", "transformer_engine", "apex", "stand_ins", "can_train"} <= set(document)
    assert document["can_train"]
    assert main(["doctor"]) == 0
    assert "a run can start here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("engine", "apex", "name", "missing"),
    [("2.12.0", True, "container", 0), ("2.12.0", False, "gpu", 1), ("", False, "pip", 3)],
)
def test_the_three_installations_on_h100s(machine, capsys, engine, apex, name, missing):
    machine([H100] * 8, engine, apex)
    code, document = told(capsys)
    assert code == 0
    assert document["installation"] == name
    assert document["gpu"]["count"] == 8
    assert document["gpu"]["capability"] == "9.0"
    assert document["transformer_engine"] == (engine or None)
    assert document["apex"] is apex
    assert document["fp8"] is bool(engine)
    # pip's Megatron has no Makefile, and tensor parallelism on Hopper needs its variable.
    assert len(document["stand_ins"]) == missing + 2
    assert document["stand_ins"][-1]["environment"] == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert all(row["cost"] for row in document["stand_ins"])
    assert main(["doctor"]) == 0
    assert "8 x NVIDIA H100 80GB HBM3" in capsys.readouterr().out


def test_a_gpu_that_torch_cannot_use_ends_with_2(machine, capsys):
    machine([H100], usable=False)
    code, document = told(capsys)
    assert code == 2
    assert not document["can_train"]
    assert "580.65.06" in document["problems"][0]["what"]
    assert main(["doctor"]) == 2
    assert "could not start" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "headers", "what"),
    [
        ({"PATH": "/nowhere"}, True, "there is no C compiler;"),
        ({"CC": "/nowhere/gcc"}, True, "/nowhere/gcc, which CC names"),
        ({}, False, "Python.h"),
    ],
)
def test_a_gpu_without_what_triton_compiles_with_ends_with_2(machine, capsys, monkeypatch, variables, headers, what):
    """Megatron's first step died of it on every node, after `doctor` had said that a run could start."""
    machine([H100])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not headers:
        monkeypatch.setattr(doctor.sysconfig, "get_path", lambda *_: "/nowhere")
    code, document = told(capsys)
    assert code == 2
    (problem,) = document["problems"]
    assert what in problem["what"]
    assert problem["fix"]


def test_the_host_needs_no_compiler(capsys, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/gcc")
    assert told(capsys)[0] == 0


def test_a_stage_does_not_train_on_the_host_because_torch_cannot_use_the_gpu(machine, monkeypatch):
    """It did, for days; `doctor` said that a run could not start."""
    machine([H100], usable=False)
    monkeypatch.setattr(start.cpu, "install", lambda: pytest.fail("on the host"))
    with pytest.raises(UserError, match="torch cannot use it"):
        start.prepare(["--seed", "1"])


def test_a_transformer_engine_that_does_not_fit_ends_with_2_and_the_version_that_does(machine, capsys, monkeypatch):
    machine([H100])
    versions = {
        "transformer-engine": "2.14.0",
        "nvidia-cublas": "13.1.0.3",
        "torch": "2.11.0",
        "megatron-core": "0.19.2",
    }
    monkeypatch.setattr(installation, "version_of", lambda name: versions.get(name, ""))
    monkeypatch.setattr(doctor, "version_of", lambda name: versions.get(name, ""))

    def broken(gpu):
        raise UnsupportedError("Transformer Engine 2.14.0 is installed and cannot be loaded")

    monkeypatch.setattr(installation, "transformer_engine", broken)
    code, document = told(capsys)
    assert code == 2
    assert document["transformer_engine"] is None
    (problem,) = document["problems"]
    assert "2.14.0" in problem["what"]
    assert "2.12.0" in problem["fix"]


def test_a_megatron_without_its_training_loop_ends_with_2(machine, capsys, monkeypatch):
    machine([H100])
    found = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "megatron.training" else found(name)
    )
    code, document = told(capsys)
    assert code == 2
    assert "3.12" in document["problems"][0]["fix"]


def test_devices_are_read_from_the_driver(monkeypatch):
    for function in (nvml.devices, nvml.driver):
        function.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert nvml.devices() == (H100, H100)
    assert nvml.driver() == "580.65.06"
    for fails in ("nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetCudaComputeCapability"):
        nvml.devices.cache_clear()
        monkeypatch.setattr(ctypes, "CDLL", lambda name, fails=fails: Driver([fails]))
        assert nvml.devices() == ()
    for function in (nvml.devices, nvml.driver):
        function.cache_clear()


@pytest.mark.parametrize(
    ("here", "argv", "what", "fix"),
    [
        (Installation(A100.name, A100.capability, "2.12.0"), ["--fp8-format", "hybrid"], "8.0", "bf16"),
        (INSTALLATIONS["pip"], ["--fp8-format=hybrid"], "Transformer Engine", "docs/gpu.md"),
        (INSTALLATIONS["host"], ["--fp8-format", "hybrid"], "a GPU", "bf16"),
        (INSTALLATIONS["pip"], ["--tp-comm-overlap"], "Transformer Engine", "leave the flag out"),
    ],
)
def test_words_that_this_machine_cannot_carry_out_are_refused(here, argv, what, fix):
    with pytest.raises(UserError, match=what) as caught:
        start.refuse_impossible(here, argv)
    assert fix in caught.value.fix
    assert caught.value.where == argv[0].split("=")[0]
    start.refuse_impossible(INSTALLATIONS["gpu"], argv)


@pytest.mark.parametrize(
    ("why", "fix"),
    [("cudnn shared object not found.", "CUDNN_HOME"), ("undefined symbol: cublasLt", "the version that goes with")],
)
def test_a_transformer_engine_that_cannot_be_loaded_says_what_to_do(monkeypatch, why, fix):
    def fail(name):
        raise RuntimeError(why)

    monkeypatch.setattr(installation, "version_of", lambda name: "2.12.0")
    monkeypatch.setattr(installation, "conflicts", lambda: [])
    monkeypatch.setattr(installation.importlib, "import_module", fail)
    with pytest.raises(UnsupportedError, match="cannot be loaded") as error:
        installation.load_transformer_engine()
    assert why in str(error.value)
    assert fix in error.value.fix
