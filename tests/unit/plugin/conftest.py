"""Megatron on the host while the tests of this folder run; outside it the process stays as it was."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def megatron_on_the_host():
    from megatron_growth.backend import cpu

    cpu.install()
    yield
    cpu.uninstall()
