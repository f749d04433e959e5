"""Layouts against Megatron's own parser and against what divides."""

import pytest

from megatron_growth import recipes
from megatron_growth.errors import ParallelLayoutError, RecipeError
from megatron_growth.planner import layouts, plan_run
from megatron_growth.shape import ModelShape

EXAMPLE = recipes.path_of("progressive-8b").read_text()


def changed(*pairs):
    text = EXAMPLE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return recipes.loads(text)


def test_the_4b_model_splits_by_1_5_and_25():
    shape = ModelShape(hidden=3200, ffn=11200, layers=1, heads=25, vocab=1)
    assert layouts.tensor_parallel_sizes(shape) == [1, 5, 25]


def test_query_groups_limit_tensor_parallelism():
    shape = ModelShape(hidden=4096, ffn=14336, layers=1, heads=32, query_groups=8, vocab=1)
    assert layouts.tensor_parallel_sizes(shape) == [1, 2, 4, 8]


def test_33_layers_split_by_3_11_or_unevenly():
    assert layouts.pipeline_sizes(33) == [1, 3, 11, 33]
    uneven = layouts.uneven_layout(33, 4)
    counts = layouts.layers_per_chunk(33, 4, 1, uneven)
    assert sum(counts) == 33
    assert max(counts) - min(counts) == 1


@pytest.mark.parametrize("text", ["Ettt|ttL", "Et*16|t*17L", "E|(t|)*3,L", "Ett|(tt|)*2tL", "E|t*3|ttt|L"])
def test_pipeline_layouts_read_as_megatron_reads_them(text):
    layout = pytest.importorskip("megatron.core.transformer.pipeline_parallel_layer_layout")
    theirs = layout.PipelineParallelLayerLayout.parse_str_to_list(text)
    ours = layouts.parse_pipeline_layout(text)
    assert [part.count("t") for part in ours] == [
        sum(getattr(layer, "name", layer) in ("decoder", "t") for layer in part) for part in theirs
    ]


@pytest.mark.parametrize(
    "text",
    ["Ett||t|L", "Ett|tL|t|L", "EttE|t||L", "E |tt|t|L", "Ett|m|t|L", "E|t*1*3||L", "E((t|)*1)*3L", "E|(t|)*2tL"],
)
def test_what_megatron_refuses_is_refused(text):
    layout = pytest.importorskip("megatron.core.transformer.pipeline_parallel_layer_layout")

    def takes(check, *errors):
        try:
            check()
        except errors:
            return False
        return True

    theirs = takes(
        lambda: layout.PipelineParallelLayerLayout(text, 4).validate_layer_layout(3, None), AssertionError, ValueError
    )
    assert takes(lambda: layouts.layers_per_chunk(3, 4, 1, text), ValueError) == theirs


@pytest.mark.parametrize("text", ["Et*99999999999L", "E" + "(" * 6 + "t" + ")*99999" * 6 + "L", f"Et*{'9' * 5000}L"])
def test_a_layout_that_would_fill_the_memory_is_refused(text):
    with pytest.raises(ValueError, match="longer than"):
        layouts.parse_pipeline_layout(text)


@pytest.mark.parametrize("chunks", range(1, 9))
@pytest.mark.parametrize("layers", [8, 9, 27, 33])
def test_uneven_layouts_are_valid(layers, chunks):
    counts = layouts.layers_per_chunk(layers, chunks, 1, layouts.uneven_layout(layers, chunks))
    assert sum(counts) == layers
    assert min(counts) >= layers // chunks
    longer = [chunk for chunk, count in enumerate(counts) if count > layers // chunks]
    assert len(longer) == layers % chunks
    shorter = set(range(chunks)) - set(longer)
    middle = (chunks - 1) / 2
    assert all(abs(one - middle) <= abs(other - middle) for one in longer for other in shorter)


@pytest.mark.parametrize(
    ("vocab", "tp", "rows"), [(50257, 1, 50304), (50257, 8, 51200), (1024, 2, 1024), (1024, 5, 1280)]
)
def test_vocabulary_padding(vocab, tp, rows):
    assert layouts.pad_vocabulary(vocab, 128, tp) == rows


def test_25_heads_with_tp_2_names_the_possible_sizes():
    recipe = changed(
        ("micro_batch_size: 4\n    layout: {tp: 1, pp: 1}", "micro_batch_size: 4\n    layout: {tp: 2, pp: 1}")
    )
    with pytest.raises(
        ParallelLayoutError, match=r"recipe:\d+ .*25 heads cannot be split by TP 2; possible TP: 1, 5, 25"
    ):
        plan_run(recipe)


def test_all_layout_problems_come_at_once():
    recipe = changed(
        ("micro_batch_size: 4\n    layout: {tp: 1, pp: 1}", "micro_batch_size: 4\n    layout: {tp: 2, pp: 1}"),
        ("layout: {tp: 2, pp: 1, sequence_parallel: true}", "layout: {tp: 1, pp: 4, sequence_parallel: true}"),
    )
    with pytest.raises(ParallelLayoutError) as caught:
        plan_run(recipe)
    message = str(caught.value)
    assert "25 heads" in message
    assert "33 layers cannot be split evenly by PP 4: possible are 1, 3, 11, 33" in message
    assert "sequence parallelism needs TP > 1" in message
    assert caught.value.exit_code == 2


def test_batches_and_interleaving_that_do_not_divide():
    with pytest.raises(ParallelLayoutError, match="not a multiple of micro-batch 8 x DP 3"):
        plan_run(
            changed(("micro_batch_size: 8\n    layout: {tp: 1, pp: 1}", "micro_batch_size: 8\n    layout: {dp: 3}"))
        )
    nano = recipes.path_of("nano-progressive").read_text().replace("vpp: 2", "vpp: 2, recompute: full")
    with pytest.raises(ParallelLayoutError, match="number of micro-batches that PP 2 divides"):
        plan_run(
            recipes.loads(
                nano.replace(
                    "lr: 10e-3, global_batch_size: 16,\n     micro_batch_size: 8",
                    "lr: 10e-3, global_batch_size: 8,\n     micro_batch_size: 8",
                )
            )
        )


def test_a_stage_without_compute_is_refused():
    with pytest.raises(RecipeError, match="stage 2B is left no compute"):
        plan_run(changed(("nominal_parameters: 2e9", "nominal_parameters: 0.9e9")))


def test_a_pool_that_is_too_small_is_refused():
    with pytest.raises(RecipeError, match="used up in stage 4B"):
        plan_run(changed(("tokenizer: gpt2", "tokenizer: gpt2\n  pool_tokens: 200e9")))


def test_a_warm_up_longer_than_the_stage_is_refused():
    with pytest.raises(RecipeError, match="warm-up of 50000 iterations is longer than the stage of 38147") as caught:
        plan_run(changed(("warmup_iterations: 1000", "warmup_iterations: 50000")))
    line = next(n for n, text in enumerate(EXAMPLE.splitlines(), 1) if "warmup_iterations" in text)
    assert f"recipe:{line}" in str(caught.value)


def test_a_freeze_pattern_that_matches_nothing_is_refused():
    with pytest.raises(RecipeError, match="matches no parameter"):
        plan_run(changed(("  - name: 2B\n", "  - name: 2B\n    freeze: [embeding.*]\n")))


def test_everything_frozen_is_refused():
    with pytest.raises(RecipeError, match="everything is frozen"):
        plan_run(changed(("  - name: 2B\n", "  - name: 2B\n    freeze: ['*']\n")))
