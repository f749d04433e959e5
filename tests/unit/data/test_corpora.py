"""The built-in corpora hold what their descriptions say."""

import ast

from megatron_growth.data import corpora
from megatron_growth.data.sources import discover


def test_the_packages_corpus_is_the_stdlib_and_large_packages():
    small, large = corpora.sources_of("stdlib"), corpora.sources_of("packages")
    assert set(small) < set(large)
    assert len({name for name, _ in large}) == len(large)
    begins = {name.split("/")[0] for name, _ in large} - {name.split("/")[0] for name, _ in small}
    assert {"torch", "transformers", "megatron"} <= begins
    assert not [name for name, _ in large if "/tests/" in name]
    assert 100e6 < sum(path.stat().st_size for _, path in large) < 200e6
    assert all(source.name.startswith("packages/") for source in discover(["packages"]).sources)


def test_its_packages_are_what_this_package_needs():
    """Nothing may have to be installed for a built-in corpus."""
    needed = {"megatron": "megatron-core", "sympy": "torch"}
    assert {needed.get(name, name) for name in corpora.PACKAGES} <= {
        "megatron-core",
        "numpy",
        "scipy",
        "torch",
        "transformers",
    }
    path = dict(corpora.sources_of("packages"))["torch/__init__.py"]
    ast.parse(path.read_text(encoding="utf-8"))
