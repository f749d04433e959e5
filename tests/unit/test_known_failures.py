"""The list of what of Megatron's own tests is known to fail: another failure of such a test is not known."""

import importlib.util
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "ci"


def kind_of(text):
    """The kind under which a "test: error" is known, None when it is not."""
    spec = importlib.util.spec_from_file_location("megatron_tests", CI / "megatron_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reasons = module.known_reasons(CI / "megatron-tests-known.txt")
    return next((kind for kind, pattern in reasons if pattern.search(text)), None)


@pytest.mark.parametrize(
    ("test", "error", "kind"),
    [
        (
            "::TestCrossRanksReads::test_full_dp_reads",
            "E  AssertionError: assert defaultdict(1) == {'a': [0]}",
            "ranks",
        ),
        ("::test_reduce_scatter_with_fp32_accumulation[False-True]", "E   assert True == False", "ranks"),
        ("::test_initialize_and_destroy_model_parallel[tp]", "E   AssertionError: assert None", "ranks"),
        ("::TestActivationHookLifecycle::test_x", "E  TypeError: isinstance() arg 2 must be a type, a", "kernels"),
        ("::test_release_and_reallocate_storage_preserves_buffer_views", "E assert 1 == 2\nE where data_ptr", "gap"),
        (
            "::test_chunk_offload_handler_respects_tensor_opt_out_flags",
            "E  assert False\nE  where False = tensor_need_offloading_checker(tensor",
            "gap",
        ),
    ],
)
def test_only_the_error_that_is_known_is_known(test, error, kind):
    assert kind_of(f"tests/unit_tests/x.py{test}: def f():\n{error}") == kind
    assert kind_of(f"tests/unit_tests/x.py{test}: def f():\nE   KeyError: 'another'") is None
