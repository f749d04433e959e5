"""The benchmarks of the papers, and the sets in which the papers report them; all zero-shot, by lm-eval's definitions.

`acc_norm` (log-likelihood of an answer over its length) is taken where lm-eval has it, `acc` elsewhere.  The papers do
not say which of the two they print; their ARC-c, OBQA and HellaSwag (37.5, 39.2 and 55.0 at 1B) lie where acc_norm
lies.  Every other figure that lm-eval computes is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_growth.errors import UserError, nearest

Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: lm-eval's name for the task, or for the group of tasks.
        definition: YAML file of the task below lm-eval's folder of tasks; of a group, with {} for the task.
        metric: the one that the papers report.
        split: the one that is evaluated.
        columns: those that the definition needs.
        parts: tasks of a group; their metric is averaged by number of questions, as lm-eval does.
        higher_is_better: False for a perplexity, which no task average includes.
    """

    name: str
    definition: str
    metric: str
    split: Split
    columns: tuple[str, ...]
    parts: tuple[str, ...] = ()
    higher_is_better: bool = True

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its tasks in lm-eval: one, or those of a group."""
        return tuple(f"{self.name}_{part}" for part in self.parts) or (self.name,)


MMLU = (
    *("abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology"),
    *("college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics"),
    *("computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics"),
    *("formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science"),
    *("high_school_european_history", "high_school_geography", "high_school_government_and_politics"),
    *("high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics"),
    *("high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history"),
    *("human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies"),
    *("machine_learning", "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes"),
    *("moral_scenarios", "nutrition", "philosophy", "prehistory", "professional_accounting", "professional_law"),
    *("professional_medicine", "professional_psychology", "public_relations", "security_studies", "sociology"),
    *("us_foreign_policy", "virology", "world_religions"),
)
_ARC = ("question", "choices", "answerKey")
_ALL = (
    Benchmark("lambada_openai", "lambada/lambada_openai.yaml", "acc", "test", ("text",)),
    Benchmark("arc_easy", "arc/arc_easy.yaml", "acc_norm", "test", _ARC),
    Benchmark("arc_challenge", "arc/arc_challenge.yaml", "acc_norm", "test", _ARC),
    Benchmark(
        "winogrande", "winogrande/default.yaml", "acc", "validation", ("sentence", "option1", "option2", "answer")
    ),
    Benchmark("piqa", "piqa/piqa.yaml", "acc_norm", "validation", ("goal", "sol1", "sol2", "label")),
    Benchmark("openbookqa", "openbookqa/openbookqa.yaml", "acc_norm", "test", ("question_stem", *_ARC[1:])),
    Benchmark(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        "acc_norm",
        "validation",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    Benchmark("boolq", "super_glue/boolq/default.yaml", "acc", "validation", ("passage", "question", "label")),
    Benchmark("mmlu", "mmlu/default/{}.yaml", "acc", "test", ("question", "choices", "answer"), MMLU),
    Benchmark("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", "acc", "validation", ("question", "mc1_targets")),
    Benchmark("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", "acc", "validation", ("question", "mc2_targets")),
    Benchmark("wikitext", "wikitext/wikitext.yaml", "word_perplexity", "test", ("page",), higher_is_better=False),
)
BENCHMARKS = {one.name: one for one in _ALL}
_SEVEN = ("lambada_openai", "arc_easy", "arc_challenge", "winogrande", "piqa", "openbookqa", "hellaswag")
# What each paper reports; MT-Bench and AlpacaEval are answers to be judged (`evaluate answers`).
SETS = {
    "family": ("wikitext", *_SEVEN),
    "reuse": ("wikitext", *_SEVEN),
    "step": ("wikitext", *_SEVEN),
    "wso-pre": ("arc_easy", "arc_challenge", "openbookqa", "boolq", "hellaswag", "piqa", "winogrande"),
    "wso-post": ("mmlu", "truthfulqa_mc2"),
}
SHORT = {
    "lambada": "lambada_openai",
    "arc-e": "arc_easy",
    "arc-c": "arc_challenge",
    "obqa": "openbookqa",
    "truthfulqa": "truthfulqa_mc2",
}


def chosen(names: str) -> list[Benchmark]:
    """The benchmarks that a comma-separated list names, each once, in the order given.

    Raises:
        UserError: a name is not a benchmark's, a short form or a set.
    """
    found: dict[str, Benchmark] = {}
    for name in (word.strip() for word in names.split(",")):
        for member in SETS.get(name, (SHORT.get(name, name),)):
            if member not in BENCHMARKS:
                known = (*BENCHMARKS, *SETS, *SHORT)
                raise UserError(f"there is no benchmark {name!r}", where="--tasks", fix=nearest(name, known))
            found[member] = BENCHMARKS[member]
    return list(found.values())


def average(values: dict[str, float]) -> float | None:
    """The mean over benchmarks whose metric is an accuracy, as the papers' task averages; None without any."""
    counted = [value for name, value in values.items() if BENCHMARKS[name].higher_is_better]
    return sum(counted) / len(counted) if counted else None
