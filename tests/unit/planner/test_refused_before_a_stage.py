"""What a rank would refuse when a stage starts, weeks after its plan, is refused by the plan, with its line."""

import copy
import re

import pytest
import yaml

from megatron_growth import recipes
from megatron_growth.errors import UserError
from megatron_growth.planner import plan_run

SIZES = {"lr": 1e-2, "iterations": 14, "global_batch_size": 4, "micro_batch_size": 2}
RECIPE = {
    "name": "two",
    "summary": "two stages",
    "model": {"head_dim": 8, "ffn_multiple": 2, "sequence_length": 32, "vocab_multiple": 64},
    "data": {"corpus": "stdlib", "tokenizer": "sentencepiece:512"},
    "schedule": {"name": "cosine", "warmup_iterations": 2},
    "budget": {"rule": "iterations"},
    "growth": {"width": "aki", "depth": "stack"},
    "optimizer": {"distributed": False},
    "evaluation": {"interval": 6, "iterations": 2},
    "stages": [
        {"name": "small", "hidden": 16, "layers": 2, "heads": 2, **SIZES},
        {"name": "large", "from": "small", "hidden": 32, "layers": 3, "heads": 4, **SIZES},
    ],
}


def planned(**changes):
    """The plan of the recipe with other stages, named `small` and `large`, and other blocks."""
    document = copy.deepcopy(RECIPE)
    for name, change in changes.items():
        index = {"small": 0, "large": 1}.get(name)
        place = document if index is None else document["stages"][index]
        for key, value in (change if index is not None else {name: change}).items():
            place[key] = {**place[key], **value} if isinstance(place.get(key), dict) else value
    return plan_run(recipes.loads(yaml.safe_dump(document)), gpus=1)


def rule(pattern, schedule):
    return {"rules": [{"pattern": pattern, "schedule": schedule}]}


CASES = {
    "a rule's schedule that does not exist": ({"large": rule("output_layer.*", "cosin")}, "rules[0]", "did you mean"),
    "a rate that is nan": ({"large": rule("output_layer.*", "wso:peak=nan")}, "rules[0]", "not a finite number"),
    "a rate below nothing": ({"large": rule("*", -1)}, "rules[0]", "not one to train with"),
    "a rule's warm-up": ({"large": rule("*", "cosine:warmup_iterations=100")}, "rules[0]", "longer than the stage"),
    "a method's schedule that does not exist": (
        {"large": {"methods": ['rates:rules=["*=cosin"]']}},
        "methods[0]",
        "did you mean",
    ),
    "a rule without what it needs": ({"large": rule("*", "relora")}, "rules[0]", "needs restart_iterations"),
    "a rule for nothing": ({"large": rule("outputlayer.*", "frozen")}, "rules[0]", "did you mean output_layer"),
    "rules that freeze all": ({"large": rule("*", "frozen")}, "rules", "everything is frozen"),
    "adapters on adapters": ({"large": {"methods": ["relora:rank=2", "relora:rank=4"]}}, "methods[1]", "2 times"),
    "a source with adapters": (
        {"small": {"methods": ["relora:rank=2,merge_at_end=false"]}},
        "from",
        "merge at its end",
    ),
    "a warm-up of everything": ({"large": {"schedule": {"warmup_iterations": 14}}}, "schedule", "takes all 14"),
    "an early stop that never comes": (
        {"small": {"stop_below": 3.0}, "evaluation": {"interval": 100}},
        "stop_below",
        "",
    ),
    "half a pair": ({"model": {"head_dim": 5}}, "model.head_dim", "pairs of numbers"),
    "no layers in two parts": (
        {"small": {"layers": 0, "layout": {"pp": 2}}, "growth": {"depth": "random"}},
        "layout.pp",
        "without layers",
    ),
    "a name that no folder takes": ({"large": {"name": "b" * 300}}, "stages[1].name", "at most 100"),
    "a corpus that is nowhere": ({"data": {"corpus": ""}}, "data.corpus", "at least 1 character"),
    "a scaling of nothing": (
        {"model": {"position": "none", "rope_scaling": {"factor": 8}}},
        "model.rope_scaling",
        "does nothing",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_with_its_line(name):
    changes, key, what = CASES[name]
    with pytest.raises(UserError) as refused:
        planned(**changes)
    assert what in str(refused.value)
    assert re.search(r"recipe:\d+ \((stages\[\d\]\.)?" + re.escape(key), str(refused.value))


def test_what_a_rule_freezes_is_not_counted_as_trained():
    frozen, free = planned(large=rule("embedding.*", "frozen")), planned()
    assert frozen.stages[1].parameters.trainable < free.stages[1].parameters.trainable
    assert frozen.stages[1].memory.total_bytes < free.stages[1].memory.total_bytes
