"""The table of replaced functions: it matches the Megatron that is installed, and refuses any other."""

import types

import pytest

from megatron_growth.errors import UnsupportedError
from megatron_growth.plugin import rebind


@pytest.fixture
def training():
    from megatron.training import training

    yield training
    rebind.unbind_all()


def test_every_target_is_there_and_comes_back(training):
    before = {name: rebind.original(name) for name in rebind.TARGETS}
    for name in rebind.TARGETS:
        rebind.bind(name, lambda original: lambda *args, **kwargs: original(*args, **kwargs))
    assert rebind.bound() == tuple(rebind.TARGETS)
    assert all(rebind.original(name) is not before[name] for name in rebind.TARGETS)
    rebind.unbind_all()
    assert rebind.bound() == ()
    assert all(rebind.original(name) is before[name] for name in rebind.TARGETS)


def test_a_vanished_function_is_refused(training, monkeypatch):
    monkeypatch.delattr(training, "training_log")
    with pytest.raises(UnsupportedError, match=r"training_log is not there") as failure:
        rebind.bind("training_log", lambda original: original)
    assert rebind.SUPPORTED in failure.value.fix


def test_a_changed_signature_is_refused(training, monkeypatch):
    monkeypatch.setattr(training, "training_log", lambda losses, step: None)
    with pytest.raises(UnsupportedError, match=r"has the parameters \(losses step\)"):
        rebind.bind("training_log", lambda original: original)


@pytest.mark.parametrize("version", [(0, 18, 2), (0, 20, 0), (1, 0, 0)])
def test_another_megatron_is_refused_with_the_supported_versions(monkeypatch, version):
    import megatron.core.package_info as package_info

    for name, value in zip(("MAJOR", "MINOR", "PATCH"), version, strict=True):
        monkeypatch.setattr(package_info, name, value)
    monkeypatch.setattr(package_info, "__shortversion__", ".".join(map(str, version)))
    with pytest.raises(
        UnsupportedError, match=r"does not know Megatron-Core " + ".".join(map(str, version))
    ) as failure:
        rebind.check_version()
    assert "0.19" in failure.value.fix
    assert failure.value.exit_code == 2


def test_a_replacement_looks_like_its_original(training):
    rebind.bind("training_log", lambda original: lambda *args, **kwargs: original(*args, **kwargs))
    assert training.training_log.__name__ == "training_log"
    assert training.training_log.__doc__


@pytest.mark.fault
def test_a_table_that_forgets_a_parameter_is_caught(training, monkeypatch):
    target = rebind.TARGETS["evaluate"]
    wrong = types.MappingProxyType({**rebind.TARGETS, "evaluate": rebind.Target("evaluate", target.why, "model")})
    monkeypatch.setattr(rebind, "TARGETS", wrong)
    with pytest.raises(UnsupportedError):
        rebind.bind("evaluate", lambda original: original)
