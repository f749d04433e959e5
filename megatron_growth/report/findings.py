"""What a run shows, in sentences: every sentence follows from the numbers of this run, whichever way they came out."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_growth.report.records import RunRecord, StageRecord
from megatron_growth.report.variants import BASELINE, Variant

# Repeats of one nano run with other seeds differ by about this much (docs/benchmarks.md), so less is called a tie.
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
                sentences.append(_against(last, ours, baseline, theirs))
    if len(run.stages) > 1 and run.scratch_flops:
        sentences.append(
            f"The whole family of {len(run.stages)} models is planned at {run.total_flops:.3g} FLOPs; "
            f"each of them from scratch would take {run.scratch_flops:.3g}: the chain takes {run.saving:.1%} less."
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
    ranked = sorted(done, key=lambda v: v.last.final_validation or 0.0)
    if len(ranked) > 1:
        order = ", ".join(f"{v.name} {v.last.final_validation:.3f}" for v in ranked)
        sentences.append(f"Final validation loss, best first: {order} nats.")
    baseline = next((v for v in done if v.name == BASELINE), None)
    if baseline is not None and baseline.last.final_validation is not None:
        target = baseline.last.final_validation
        ahead = [v.name for v in ranked if (v.last.final_validation or 0.0) < target - TIE_NATS]
        sentences.append(
            f"Better than the baseline by {TIE_NATS} nats or more after as many steps of the last stage: "
            f"{', '.join(ahead) or 'none'}. Earlier stages are not charged in this comparison; the right-hand picture "
            "charges them."
        )
    if ranked:
        sentences.append(f"One run of each, one seed: differences under {TIE_NATS} nats are called a tie.")
    return sentences


def _against(grown: StageRecord, ours: float, baseline: StageRecord, theirs: float) -> str:
    """One comparison of final validation losses, with the compute and the steps of both."""
    difference = theirs - ours
    spent = grown.flops_at(grown.iterations)
    if abs(difference) < TIE_NATS:
        verdict = f"ties with {baseline.name} ({ours:.3f} and {theirs:.3f} nats)"
    else:
        word = "better" if difference > 0 else "worse"
        verdict = f"is {abs(difference):.3f} nats {word} than {baseline.name} ({ours:.3f} against {theirs:.3f})"
    return (
        f"Grown {grown.name} {verdict} on validation text, after {spent:.3g} FLOPs for the whole chain and "
        f"{baseline.flops:.3g} for the baseline."
    )
