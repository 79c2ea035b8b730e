"""The order of an epoch: properties for any store, and how well it mixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoar.core.ids import seed_from, sha256_hex
from videoar.training.data import epoch_order as order_module
from videoar.training.data.epoch_order import ROW_BYTES, STRATA, VERSION, epoch_order, num_strata

SMALL, LARGE = 1000, ROW_BYTES


@pytest.fixture(autouse=True, scope="module")
def small_windows():
    """Let windows be of 20 small rows, so that small stores do not fit into them.

    Not a parameter: the constants of an order are part of its version, which checkpoints hold.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WINDOW_BYTES", 20 * SMALL)
        yield


def make(rows_per_group, batch_size, row_bytes=SMALL, key=("digest", 0, 0)):
    """One bucket of row groups of the given numbers of rows."""
    row_group_N = np.repeat(np.arange(len(rows_per_group)), rows_per_group)
    one = np.zeros(len(row_group_N), int)
    order = epoch_order(one, row_group_N, one + row_bytes, np.array([batch_size]), key)
    return order, row_group_N


@st.composite
def stores(draw):
    """Rows of up to three shapes in row groups of one shape each."""
    groups = draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=40)
    )
    kinds = sorted({kind for kind, _ in groups})
    bucket_N = np.concatenate([np.full(n, kinds.index(kind)) for kind, n in groups])
    row_group_N = np.repeat(np.arange(len(groups)), [n for _, n in groups])
    sizes = np.array(
        draw(st.lists(st.integers(1, 12), min_size=len(kinds), max_size=len(kinds))), int
    )
    bytes_N = np.array(draw(st.lists(st.sampled_from([SMALL, LARGE]), min_size=3, max_size=3)))
    return bucket_N, row_group_N, bytes_N[bucket_N], sizes


@given(stores(), st.integers(0, 5))
@settings(max_examples=200)
def test_batches_hold_every_row_once_and_one_shape_each(store, seed):
    bucket_N, *_, sizes = store
    order = epoch_order(*store, key=("d", seed, 0))
    batches = [order.batch(step) for step in range(len(order))]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(bucket_N)))
    for bucket in range(len(sizes)):
        own = [rows for rows in batches if bucket_N[rows[0]] == bucket]
        assert all((bucket_N[rows] == bucket).all() for rows in own)
        assert all(len(rows) == sizes[bucket] for rows in own[:-1])
        assert 1 <= len(own[-1]) <= sizes[bucket]
    again = epoch_order(*store, key=("d", seed, 0))
    assert [a.tolist() for a in batches] == [again.batch(s).tolist() for s in range(len(again))]


@given(stores(), st.sampled_from([1, 2, 3, 4, 8]))
@settings(max_examples=100)
def test_slices_of_ranks_make_up_every_batch(store, world_size):
    *rest, sizes = store
    order = epoch_order(*rest, sizes * world_size, key=("d", 0, 0))
    for step in range(len(order)):
        parts = [order.batch(step, rank, world_size) for rank in range(world_size)]
        assert np.concatenate(parts).tolist() == order.batch(step).tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_example_of_the_module_docstring_holds(monkeypatch):
    monkeypatch.setattr(order_module, "STRATA", 2)
    monkeypatch.setattr(order_module, "WINDOW_BYTES", 8 * SMALL)
    order, _ = make([4] * 6, 4, key=("d", 0, 0))
    assert [(order.batch(s, 0, 2).tolist(), order.batch(s, 1, 2).tolist()) for s in range(6)] == [
        ([4, 12], [17, 19]),
        ([5, 13], [16, 18]),
        ([6, 14], [20, 2]),
        ([7, 15], [21, 1]),
        ([8, 10], [23, 0]),
        ([9, 11], [22, 3]),
    ]


def test_order_is_pinned_by_its_version():
    """States hold positions: a change of these figures without one of `VERSION` loses rows."""
    rows_N = np.concatenate([make([7] * 400, 128, size)[0].rows_N for size in (SMALL, LARGE)])
    pinned = VERSION, sha256_hex(rows_N.astype("<i8").tobytes())[:16]
    assert pinned == (2, "5e06ead115d9b7ab")


def test_orders_of_other_epochs_and_seeds_differ():
    orders = [
        make([5] * 40, 8, key=("d", *at))[0].rows_N.tolist() for at in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_row_groups_in_use_by_a_rank_are_bounded_by_its_strata(world_size):
    rows = np.random.default_rng(0).integers(40, 60, size=300)
    order, row_group_N = make(rows, 8)
    seen = [row_group_N[order.batch(step, 0, world_size)] for step in range(len(order) - 10)]
    at_a_time = [len(set(np.concatenate(seen[s : s + 10]))) for s in range(len(seen) - 10)]
    strata = num_strata(8) // world_size
    assert max(at_a_time) <= 2 * strata  # each stratum may change its row group in ten batches
    assert np.mean(at_a_time) < 1.3 * strata


def test_number_of_strata_divides_the_batch():
    assert [num_strata(size) for size in (1, 7, 64, 96, 100, 127, 256)] == [1, 7, 64, 48, 50, 1, 64]
    assert STRATA == 64


def figures(rows, size, source_N):
    """Pairs of one source in a batch, and how far the batches' mean places are from each other."""
    count = len(rows) // size
    batches = rows[: count * size].reshape(count, size)
    sources = np.sort(source_N[batches], axis=1)
    return (np.diff(sources, axis=1) == 0).sum(axis=1).mean(), batches.mean(axis=1).std()


@pytest.mark.parametrize("size", [STRATA, 2 * STRATA, 4 * STRATA])
def test_order_mixes_about_as_well_as_a_full_shuffle(size):
    """Where a batch has more rows than strata, some of them are of one row group."""
    num_groups, per_group, per_source = 1024, 64, 16
    rows_N = make([per_group] * num_groups, size)[0].rows_N
    random = np.random.default_rng(0)
    full_N = random.permutation(len(rows_N))
    side_by_side_N = np.arange(len(rows_N)) // per_source
    spread_N = random.permutation(side_by_side_N)  # as compaction stores them: in hash order
    full_pairs, full_spread = figures(full_N, size, spread_N)
    pairs, spread = figures(rows_N, size, spread_N)
    assert 0.8 * full_pairs < pairs < 1.2 * full_pairs
    assert 0.7 * full_spread < spread < 1.4 * full_spread * (size / STRATA) ** 0.5
    assert figures(rows_N, size, side_by_side_N)[0] < full_pairs


def test_shapes_share_the_bytes_of_a_window():
    """A rank reads only its own strata if all shapes together do not fit into the windows."""
    rows, per_group, strata, kinds = 160, 10, 8, 3
    row_group_N = np.arange(kinds * rows) // per_group
    bucket_N = np.arange(kinds * rows) // rows
    sizes = np.full(kinds, strata)
    order = epoch_order(
        bucket_N, row_group_N, np.full(kinds * rows, SMALL), sizes, ("digest", 0, 0)
    )
    mine = np.concatenate([order.batch(step, 0, strata) for step in range(len(order))])
    assert len(set(row_group_N[mine])) <= kinds * (rows // per_group // strata + 1)


def test_small_row_groups_share_a_window():
    """Files of one clip each are permuted across files, not read one after the other."""
    order, _ = make([1] * 400, 4)
    stratum = order.rows_N.reshape(-1, 4)[:, 0]
    assert len(set(np.diff(stratum))) > 10


def test_bucket_that_fits_its_windows_is_permuted_as_a_whole():
    assert make([20] * 4, 4)[0].rows_N.tolist() == (
        np.random.Generator(np.random.Philox(key=_key(0))).permutation(80).tolist()
    )


def _key(bucket):
    return seed_from("digest", 0, 0, bucket)
