"""The --growth-* arguments: what they become, and which combinations are refused with which sentence."""

import argparse
import subprocess
import sys

import pytest

from megatron_growth.errors import GrowthPlanError, RecipeError, UnsupportedError, UserError
from megatron_growth.methods.freeze import Freeze
from megatron_growth.methods.rates import Rates
from megatron_growth.plugin import PluginOptions, add_arguments

MEGATRONS = {
    "lr": 1e-3,
    "eval_iters": 1,
    "eval_interval": 10,
    "load": None,
    "save": None,
    "pretrained_checkpoint": None,
    "dataloader_type": None,
}


def options(*words, **megatrons):
    args = add_arguments(argparse.ArgumentParser()).parse_args(words)
    for name, value in {**MEGATRONS, **megatrons}.items():
        setattr(args, name, value)
    return PluginOptions.from_args(args)


def test_the_defaults_ask_for_nothing():
    plain = options()
    assert (plain.source, plain.methods, plain.metrics, plain.data_pool) == (None, (), None, None)
    assert plain.stop_below is None
    assert (plain.layer_spec, plain.sublayers, plain.evaluate_at_start) == ("stock", "full", False)


def test_freezing_comes_before_the_schedules():
    words = ["--growth-freeze", "embedding.*,output_layer.*", "--growth-schedule", "*=wso", "--growth-method"]
    methods = options(*words, "freeze:patterns=[decoder.*]").methods
    assert methods == (Freeze(("embedding.*", "output_layer.*")), Rates(("*=wso",)), Freeze(("decoder.*",)))


def test_only_what_asks_for_something_is_wanted():
    assert not options().wanted
    assert not options("--growth-seed", "3", "--growth-width", "fpi").wanted
    assert options("--growth-method", "freeze:patterns=a.*").wanted
    assert options("--growth-layer-spec", "local").wanted


@pytest.mark.parametrize(
    ("words", "megatrons", "error", "message"),
    [
        (["--growth-from", "/no/such/folder"], {}, UserError, "does not name a folder"),
        (["--growth-metrics", "."], {}, UserError, "--growth-metrics names a folder"),
        (["--growth-from", ".", "--growth-width", "akii"], {}, GrowthPlanError, "no width operator is called 'akii'"),
        (["--growth-from", "."], {"save": "."}, UserError, "--growth-from and --save name the same folder"),
        (["--growth-from", "."], {"pretrained_checkpoint": "x"}, UserError, "both set the first weights"),
        (
            ["--growth-from", "."],
            {"fp8_param_gather": True},
            UnsupportedError,
            "had before growth",
        ),
        (["--growth-from", ".", "--growth-optimizer-state", "grow"], {}, UnsupportedError, "cannot grow its state"),
        (["--growth-data-start", "4"], {}, UserError, "belong together"),
        (["--growth-data-start", "9", "--growth-data-pool", "9"], {}, UserError, "does not lie in a pool of 9"),
        (["--growth-data-repeat"], {}, UserError, "needs --growth-data-start"),
        (
            ["--growth-data-start", "0", "--growth-data-pool", "9"],
            {"dataloader_type": "cyclic"},
            UserError,
            "needs samples in order",
        ),
        (["--growth-evaluate-at-start"], {"eval_iters": 0}, UserError, "needs an evaluation"),
        (["--growth-stop-below", "3"], {"eval_iters": 0}, UserError, "needs evaluations during training"),
        (
            ["--growth-freeze", "a.*"],
            {"use_megatron_fsdp": True},
            UnsupportedError,
            "do not support --use-megatron-fsdp",
        ),
        (
            ["--growth-schedule", "a.*=0.5"],
            {"optimizer": "muon"},
            UnsupportedError,
            "not with --optimizer muon",
        ),
        (["--growth-freeze", "a.*"], {"decoupled_lr": 1e-4}, UserError, "both set the embedding's learning rate"),
        (["--growth-freeze", "a.{0"], {}, RecipeError, "braces"),
        (["--growth-schedule", "*=cosinus"], {}, RecipeError, "no schedule is called 'cosinus'"),
        (["--growth-method", "freze:patterns=a.*"], {}, RecipeError, "no method is called 'freze'"),
        (["--growth-method", "freeze:pattern=a.*"], {}, RecipeError, "no parameter 'pattern'"),
        (["--growth-method", "freeze"], {}, RecipeError, "needs patterns"),
        (["--growth-schedule", "*=-1"], {}, RecipeError, "not one to train with"),
    ],
)
def test_bad_combinations_are_one_clear_error(words, megatrons, error, message):
    with pytest.raises(error, match=message) as failure:
        options(*words, **megatrons)
    assert failure.value.exit_code == 2


def test_forgetting_the_second_line_is_explained():
    with pytest.raises(UserError, match="arguments are missing") as failure:
        PluginOptions.from_args(argparse.Namespace())
    assert "extra_args_provider=growth.add_arguments" in failure.value.fix


def test_importing_the_package_imports_neither_torch_nor_megatron():
    code = (
        "import argparse, sys, megatron_growth as growth\n"
        "growth.add_arguments(argparse.ArgumentParser())\n"
        "print([m for m in ('torch', 'megatron') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
