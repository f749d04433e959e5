"""What a run shows, in sentences; each follows from the numbers of this run, whichever way they came out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_growth.records.human import plural, saved_share
from megatron_growth.report.records import RunRecord, StageRecord
from megatron_growth.report.variants import Variant, early_stop_json, finished_baseline

# Single nano runs that differ by less cannot be told apart (docs/operators.md says what was measured).
TIE_NATS = 0.03


def findings(run: RunRecord) -> list[str]:
    """Sentences for the top of the page: the largest model against each baseline, the saving, and what is missing."""
    sentences = []
    unfinished = [s.name for s in (*run.stages, *run.baselines) if not s.complete]
    if unfinished:
        sentences.append(f"Not finished: {', '.join(unfinished)}. The figures below show the run so far.")
    last = run.stages[-1] if run.stages else None
    if last is not None and last.complete:
        ours = last.final_validation
        for baseline in run.baselines:
            theirs = baseline.final_validation
            if baseline.complete and ours is not None and theirs is not None:
                steps = sum(stage.iterations for stage in run.stages)
                sentences.append(_against(last, ours, baseline, theirs, steps))
    if len(run.stages) > 1 and run.scratch:
        sentences.append(
            f"The chain of {plural(len(run.stages), 'model')} is planned at {run.total_flops:.3g} FLOPs; {run.scratch} "
            f"would take {run.scratch_flops:.3g}: the chain takes {saved_share(run.saving, 'less')}."
        )
    if last is not None and last.complete and run.baselines:
        sentences.append(
            f"One run, one seed: differences under {TIE_NATS} nats are called a tie, and losses of models this small "
            "say little about large ones."
            if last.parameters < 1e8
            else "One run, one seed."
        )
    return sentences


def variant_findings(variants: Sequence[Variant]) -> list[str]:
    """The best variant, and each variant against the one called baseline, in loss and at equal compute."""
    done = [v for v in variants if v.last.complete and v.last.final_validation is not None]
    unfinished = [v.name for v in variants if v not in done]
    sentences = [f"Not finished: {', '.join(unfinished)}."] if unfinished else []
    ranked = sorted((v for v in done if v.equal_steps), key=_final)
    if len(ranked) > 1:
        order = ", ".join(f"{v.name} {_final(v):.3f}" for v in ranked)
        sentences.append(f"Final validation loss, best first: {order} nats.")
    baseline = finished_baseline(tuple(variants))
    if baseline is not None:
        sentences += _against_baseline(baseline, [v for v in ranked if v is not baseline])
        sentences += [_stopped(v, tuple(variants)) for v in done if not v.equal_steps]
    if ranked:
        sentences.append(f"One run of each, one seed: differences under {TIE_NATS} nats are called a tie.")
    return sentences


def _final(v: Variant) -> float:
    return math.inf if v.last.final_validation is None else v.last.final_validation


def _against_baseline(baseline: Variant, others: Sequence[Variant]) -> list[str]:
    """Two sentences: which variants are better after equally many steps, and which at equal compute."""
    target = _final(baseline) - TIE_NATS
    by_steps = [v.name for v in others if _final(v) < target]
    losses = {v.name: v.loss_at(baseline.flops_exact, exact=True) for v in others}
    by_compute = [name for name, loss in losses.items() if loss is not None and loss < target]
    return [
        f"Better than the baseline by {TIE_NATS} nats or more after as many steps of the last stage, earlier stages "
        f"not charged: {', '.join(by_steps) or 'none'}.",
        f"The same at the baseline's exact FLOPs, every stage charged: {', '.join(by_compute) or 'none'}. There a "
        "variant that costs more is read before its learning rate has come to its end.",
    ]


def _stopped(v: Variant, variants: tuple[Variant, ...]) -> str:
    """A sentence on how much of the compute a variant needed that stopped at a validation loss."""
    sentence = (
        f"{v.name} was stopped at validation loss {_final(v):.3f}, after {v.last.done} of {v.last.iterations} steps"
    )
    found = early_stop_json(v, variants)
    if not found or not found["iteration"]:
        return sentence + "."
    used = {accounting: 1 - saving for accounting, saving in found["compute_saving"].items()}
    return (
        f"{sentence}: {used['paper']:.1%} of the baseline's compute by the paper's accounting, {used['exact']:.1%} by "
        "the exact one."
    )


def _against(grown: StageRecord, ours: float, baseline: StageRecord, theirs: float, steps: int) -> str:
    """One comparison of final validation losses, with the compute and the steps of both."""
    difference = theirs - ours
    spent = grown.flops_at(grown.iterations)
    if abs(difference) < TIE_NATS:
        verdict = f"ties with {baseline.name} ({ours:.3f} and {theirs:.3f} nats)"
    else:
        word = "better" if difference > 0 else "worse"
        verdict = f"is {abs(difference):.3f} nats {word} than {baseline.name} ({ours:.3f} against {theirs:.3f})"
    return (
        f"Grown {grown.name} {verdict} on validation text, after {spent:.3g} FLOPs in {steps} optimizer steps for the "
        f"whole chain and {baseline.flops:.3g} FLOPs in {baseline.iterations} steps for the baseline."
    )
