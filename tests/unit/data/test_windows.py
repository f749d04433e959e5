"""Windows of the global sample order: no gap and no repetition across stages, whatever the batch sizes."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_growth.data import index_cache, windows
from megatron_growth.data.windows import WindowDataset, window_index, window_train_dataset
from megatron_growth.errors import DataError, UnsupportedError

SEQUENCE = 8
DOCUMENTS = 60


def read_stages(batches, pool, repeat_last=False, index=window_index):
    """Global indices that each stage reads; stage k consumes iterations_k batches of size_k."""
    stages, start = [], 0
    for number, (size, iterations) in enumerate(batches):
        repeat = repeat_last and number == len(batches) - 1
        stages.append([index(p, start, pool, repeat) for p in range(size * iterations)])
        start += size * iterations
    return stages


batches = st.lists(st.tuples(st.integers(1, 16), st.integers(1, 20)), min_size=1, max_size=5)


@given(batches)
def test_stages_read_every_sample_once_and_in_order(stages):
    total = sum(size * iterations for size, iterations in stages)
    read = [index for stage in read_stages(stages, total) for index in stage]
    assert read == list(range(total))


@given(batches, st.data())
def test_fixed_data_repeats_only_in_the_last_stage(stages, data):
    total = sum(size * iterations for size, iterations in stages)
    before = total - stages[-1][0] * stages[-1][1]
    pool = data.draw(st.integers(max(before, 1), total), label="pool")
    read = read_stages(stages, pool, repeat_last=True)
    earlier = [index for stage in read[:-1] for index in stage]
    assert earlier == list(range(before))
    # The first pass through the pool has no repetition; what follows starts the pool again.
    assert earlier + read[-1][: pool - before] == list(range(pool))
    assert set(read[-1]) <= set(range(pool))


def check_disjoint(index):
    read = [i for stage in read_stages([(3, 4), (5, 2), (2, 7)], 100, index=index) for i in stage]
    assert read == list(range(len(read)))


@pytest.mark.fault
def test_a_window_that_starts_one_late_is_caught():
    check_disjoint(window_index)
    with pytest.raises(AssertionError):
        check_disjoint(lambda p, start, pool, repeat: window_index(p, start + (start > 0), pool, repeat))
    with pytest.raises(AssertionError):
        check_disjoint(lambda p, start, pool, repeat: window_index(p, start - (start > 0), pool, repeat))


def test_leaving_the_pool_without_repetition_is_refused():
    assert window_index(9, 90, 100) == 99
    with pytest.raises(DataError, match="number 100 of the run"):
        window_index(10, 90, 100)


class NoTokens:
    """Megatron asks a tokenizer for three things only."""

    vocab_size, eod, pad = 512, 0, -1
    unique_identifiers = {"class": "NoTokens"}  # noqa: RUF012


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """An indexed dataset whose token k is k, so that content tells where it came from."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    path = str(tmp_path_factory.mktemp("indexed") / "train")
    builder = IndexedDatasetBuilder(path + ".bin", dtype=np.int32)
    lengths = np.random.default_rng(0).integers(3, 40, DOCUMENTS)
    first = 0
    for length in lengths.tolist():
        builder.add_document(np.arange(first, first + length), [length])
        first += length
    builder.finalize(path + ".idx")
    return path, first


def gpt_dataset(prefix, samples, blend=None):
    """What Megatron's training builds for `--train-data-path`."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=7,
        sequence_length=SEQUENCE,
        blend_per_split=[blend or ([prefix], None), None, None],
        tokenizer=NoTokens(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        path_to_cache=None,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


@functools.cache
def content(window):
    return [tuple(window[i]["tokens"].tolist()) for i in range(len(window))]


def test_windows_of_a_gpt_dataset_are_disjoint_and_join_to_the_one_order(prefix):
    path, tokens = prefix
    pool = (tokens - 1) // SEQUENCE
    order = [tuple(gpt_dataset(path, pool)[i]["tokens"].tolist()) for i in range(pool)]
    joined, start = [], 0
    for batch, iterations in ((4, 5), (3, 7), (8, 4)):
        samples = batch * iterations
        # Each stage builds the dataset anew, as its own processes do.
        window = window_train_dataset(gpt_dataset(path, pool), start=start, samples=samples, pool=pool)
        assert len(window) == samples
        joined += content(window)
        start += samples
    assert joined == order[:start]
    seen = [token for sample in joined for token in sample]
    assert len(seen) == len(set(seen)), "a token was read twice"


def test_the_order_does_not_depend_on_the_samples_asked_for_within_one_epoch(prefix):
    path, tokens = prefix
    small, large = gpt_dataset(path, 5), gpt_dataset(path, (tokens - 1) // SEQUENCE)
    assert np.array_equal(small.shuffle_index, large.shuffle_index)
    assert np.array_equal(small.document_index, large.document_index)


def test_fixed_data_wraps_to_the_first_samples(prefix):
    path, _ = prefix
    dataset = gpt_dataset(path, 10)
    window = window_train_dataset(dataset, start=6, samples=9, pool=10, repeat=True)
    wanted = [dataset[i]["tokens"].tolist() for i in (6, 7, 8, 9, 0, 1, 2, 3, 4)]
    assert [window[i]["tokens"].tolist() for i in range(9)] == wanted


def test_a_dataset_too_short_for_the_pool_is_refused_with_the_numbers(prefix):
    path, tokens = prefix
    fits = (tokens - 1) // SEQUENCE
    dataset = gpt_dataset(path, fits + 1)
    with pytest.raises(DataError) as caught:
        window_train_dataset(dataset, start=0, samples=10, pool=fits + 1)
    assert f"{tokens:,} tokens" in caught.value.what
    assert f"{(fits + 1) * SEQUENCE + 1:,}" in caught.value.what
    assert window_train_dataset(gpt_dataset(path, fits), start=0, samples=10, pool=fits) is not None


def test_a_blend_is_windowed_and_checked_part_by_part(prefix):
    path, tokens = prefix
    blend = ([path, path], [0.5, 0.5])
    window = window_train_dataset(gpt_dataset(path, 20, blend), start=12, samples=8, pool=20)
    assert len(content(window)) == 8
    assert window.split == gpt_dataset(path, 20, blend).split
    too_many = 4 * (tokens // SEQUENCE)
    with pytest.raises(DataError, match="too short"):
        window_train_dataset(gpt_dataset(path, too_many, blend), start=0, samples=1, pool=too_many)


@pytest.mark.parametrize(("start", "samples"), [(5, 6), (10, 1), (-1, 2), (0, 0)])
def test_an_impossible_window_is_refused(prefix, start, samples):
    with pytest.raises(DataError):
        window_train_dataset(gpt_dataset(prefix[0], 10), start=start, samples=samples, pool=10)


def test_ranks_without_data_and_padding_samples(prefix):
    assert window_train_dataset(None, start=0, samples=1, pool=1) is None
    window = WindowDataset(gpt_dataset(prefix[0], 10), 2, 3, 10)
    assert float(window[None]["loss_mask"].sum()) == 0
    with pytest.raises(IndexError):
        window[3]
    with pytest.raises(UnsupportedError):
        windows.window_train_dataset([1, 2, 3], start=0, samples=1, pool=3)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.integers(1, 10))
def test_megatrons_sampler_resumes_inside_a_window(micro, data_parallel, resumed, iterations):
    """The samples that Megatron's sampler hands to all ranks after a restart go on where the stage was."""
    from megatron.training.datasets.data_samplers import MegatronPretrainingSampler

    batch = micro * data_parallel
    resumed = min(resumed, iterations - 1)
    start, samples = 17, batch * iterations
    ranks = [
        MegatronPretrainingSampler(samples, resumed * batch, micro, rank, data_parallel)
        for rank in range(data_parallel)
    ]
    read = [position for parts in zip(*ranks, strict=True) for part in parts for position in part]
    indices = [window_index(position, start, 1000) for position in read]
    assert indices == list(range(start + resumed * batch, start + samples))


def test_a_cut_order_file_is_dropped_and_whole_ones_stay(tmp_path):
    whole, cut, empty = (
        tmp_path / f"abc-GPTDataset-train-{n}.npy" for n in ("document_index", "sample_index", "shuffle")
    )
    for path in (whole, cut):
        np.save(path, np.arange(1000))
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.touch()
    with pytest.raises(DataError, match="cut short"):  # a cache that another run may be writing
        index_cache.drop_broken_orders(tmp_path)
    assert cut.exists()
    owned_cache = tmp_path / "cache"
    assert index_cache.drop_broken_orders(owned_cache) == []
    moved = [path.rename(owned_cache / path.name) for path in (whole, cut, empty)]
    assert index_cache.drop_broken_orders(owned_cache) == moved[1:]
    assert moved[0].exists()
    assert index_cache.drop_broken_orders(tmp_path / "none") == []
