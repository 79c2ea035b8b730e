"""The loader's order: pure, exactly once, the same at any world size, resumable anywhere."""

import dataclasses
import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.numbered_tokens import assert_equal, commit, contents, token_table
from tests.support.remote_objects import ConcurrentRanges, RemoteObjects
from videoar.core.errors import (
    ConfigError,
    ContractError,
    DamagedError,
    StorageError,
    TransientStorageError,
)
from videoar.stages.pretrain.data import open_stores
from videoar.storage import reader
from videoar.storage.payload import Payload
from videoar.storage.row_reader import RowReader
from videoar.training.data import epoch_order, token_loader
from videoar.training.data.buffers import BufferPool
from videoar.training.data.mixture import BLOCK, TokenMixture
from videoar.training.data.row_group_prefetch import REQUESTS
from videoar.training.data.token_loader import TokenLoader

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def snapshot():
    return commit(token_table(0, 23), token_table(23, 14), token_table(37, 9, (2, 3, 4, 4)))


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def ids(batches):
    return [batch["clip_ids"] for batch in batches]


def test_epoch_yields_every_row_once_with_its_own_values(snapshot):
    seen = []
    for batch in TokenLoader(snapshot, 4, seed=0):
        latent = batch["latent_BTKHW"]
        assert latent.dtype == torch.float16
        assert latent.shape[1:] in {(2, 3, 4, 5), (2, 3, 4, 4)}
        assert latent.is_contiguous()
        for clip, row, caption, label in zip(
            batch["clip_ids"], latent, batch["captions"], batch["labels"], strict=True
        ):
            number = int(clip, 16)
            assert torch.all(row == number)
            assert caption == (f"caption {number}" if number else "")
            assert label == f"class {number % 3}"
            seen.append(number)
    assert sorted(seen) == [i for i in range(46) if i % 5 != 4]


def test_latent_axes_are_those_of_the_store():
    shape = (2, 3, 4, 5)
    table = token_table(0, 1)
    values = np.arange(np.prod(shape)).astype("<f2").reshape(shape)
    table = table.set_column(table.column_names.index("latent"), "latent", [[values.tobytes()]])
    latent = next(iter(TokenLoader(commit(table), 1, 0)))["latent_BTKHW"][0]
    np.testing.assert_array_equal(latent.numpy(), values)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_read_the_same_global_batches(snapshot, world_size):
    whole = ids(TokenLoader(snapshot, 4, seed=1))
    ranks = [
        ids(TokenLoader(snapshot, 4, 1, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == whole


def test_order_depends_on_seed_and_epoch_only(snapshot):
    loader = TokenLoader(snapshot, 4, seed=1)
    first, second = ids(loader), ids(loader)
    assert first != second
    assert sorted(flat(first)) == sorted(flat(second))
    again = TokenLoader(snapshot, 4, seed=1)
    assert [ids(again), ids(again)] == [first, second]
    assert ids(TokenLoader(snapshot, 4, seed=2)) != first


@pytest.mark.parametrize("stop", [1, 3, 9])
def test_resume_at_another_world_size_continues_exactly(snapshot, stop):
    whole = ids(TokenLoader(snapshot, 4, seed=3))
    loader = TokenLoader(snapshot, 4, seed=3)
    for step, _ in enumerate(loader, 1):
        if step == stop:
            break
    state = loader.state_dict()
    assert all(isinstance(value, int | str) for value in state.values())
    ranks = [TokenLoader(snapshot, 4, 3, rank=r, world_size=2) for r in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    rest = [flat(parts) for parts in zip(*map(ids, ranks), strict=True)]
    assert rest == whole[stop:]


def test_ranks_that_do_not_divide_a_batch_share_it_unevenly(snapshot):
    whole = ids(TokenLoader(snapshot, 8, 0))
    ranks = [list(TokenLoader(snapshot, 8, 0, rank, 3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert flat(part["clip_ids"] for part in parts) == batch
        sizes = [len(part["clip_ids"]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert [part["first_row"] for part in parts] == [0, sizes[0], sizes[0] + sizes[1]]


def test_state_of_another_loader_is_rejected(snapshot):
    state = TokenLoader(snapshot, 4, seed=3).state_dict()
    with pytest.raises(ConfigError, match="seed 3, this loader 4"):
        TokenLoader(snapshot, 4, seed=4).load_state_dict(state)


@pytest.mark.parametrize("place", [{"step": -1}, {"step": 9}, {"epoch": -1}])
def test_state_at_no_place_of_an_epoch_is_rejected(snapshot, place):
    loader = TokenLoader(snapshot, 5, seed=0)
    assert len(loader) == 8
    with pytest.raises(ConfigError, match="the state is at step"):
        loader.load_state_dict({**loader.state_dict(), **place})


def test_split_selects_rows_and_bad_sizes_are_rejected(snapshot):
    validation = flat(ids(TokenLoader(snapshot, 4, 0, split="val")))
    assert sorted(int(clip, 16) for clip in validation) == list(range(4, 46, 5))
    assert TokenLoader(snapshot, 4, 0, split="").num_rows == 46
    with pytest.raises(ConfigError, match="there is no rank 3 of 3"):
        TokenLoader(snapshot, 4, 0, rank=3, world_size=3)
    with pytest.raises(ConfigError, match="no rows"):
        TokenLoader(commit(token_table(0, 2)), 4, 0, split="val")


def test_rows_of_two_tokenizers_are_rejected():
    tables = [
        token_table(start, 3).replace_schema_metadata({"tokenizer_digest": maker})
        for start, maker in ((0, "one"), (3, "two"))
    ]
    with pytest.raises(ConfigError, match="tokens of 2 tokenizers"):
        TokenLoader(commit(*tables), 2, 0)


def test_unknown_layout_is_rejected():
    odd = commit(token_table(0, 3).replace_schema_metadata({"layout_version": "99"}))
    with pytest.raises(ContractError, match=rf"{odd.files[0].key}: layout version 99"):
        TokenLoader(odd, 2, 0)


def test_state_of_another_order_is_rejected(snapshot, monkeypatch):
    state = TokenLoader(snapshot, 4, 0).state_dict()
    for name in ("STRATA", "WINDOW_BYTES", "ROW_BYTES", "VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(epoch_order, name, 3)
            with pytest.raises(ConfigError, match="state has order"):
                TokenLoader(snapshot, 4, 0).load_state_dict(state)
    TokenLoader(snapshot, 4, 0).load_state_dict(state)


@pytest.mark.fault(13, "a token of another byte, in the store or in the cache of a loader")
def test_wrong_checksum_names_the_clip():
    bad = commit(token_table(0, 3, corrupt=1))
    what = f"{bad.files[0].key}: damaged: latent of clip {1:032x}"
    with pytest.raises(DamagedError, match=what):
        list(TokenLoader(bad, 3, 0, verify=True))
    assert len(ids(TokenLoader(bad, 3, 0))) == 1


def checked(snapshot):
    tokenizer = SimpleNamespace(scales=[(64, 64)], num_bits=8)
    open_stores({"tokens": snapshot}, tokenizer, "a" * 64)


@pytest.mark.parametrize("opened", [lambda s: TokenLoader(s, 4, 7), RowReader, checked])
def test_opening_a_remote_store_takes_concurrent_requests_one_per_row_group(opened):
    tables = [token_table(start, 20, (2, 8, 64, 64)) for start in (0, 20)]
    notes = {"tokenizer_digest": "a" * 64, "layout_version": "1"}
    tables = [table.replace_schema_metadata(notes) for table in tables]
    wide = commit(*tables, row_group_bytes=300_000)
    store = dataclasses.replace(wide, objects=ConcurrentRanges(wide.objects))
    opened(store)
    groups, files = 20, 2  # checksums of a group lie beside the small columns of the next one
    assert store.objects.footers == files
    assert len(store.objects.spans) <= groups + files
    assert sum(store.objects.spans) < 0.02 * sum(file.size_bytes for file in wide.files)
    assert not store.objects.reads


def test_concurrent_bytes_are_bounded_with_tiny_row_groups(monkeypatch):
    # no parameter: a loader passes none on; real spans take files of tens of megabytes to fill
    monkeypatch.setattr(reader, "_SPAN_BYTES", 8000)
    tiny = commit(token_table(0, 200), row_group_bytes=1000)
    store = dataclasses.replace(tiny, objects=ConcurrentRanges(tiny.objects, together=1))
    assert_equal(contents(TokenLoader(store, 4, 7)), contents(TokenLoader(tiny, 4, 7)))
    assert 4000 < max(store.objects.spans[1:]) <= 8000  # the first is of a long footer


def far(snapshot):
    return dataclasses.replace(snapshot, objects=RemoteObjects(snapshot.objects))


@pytest.fixture(scope="module")
def many_units():
    """Twelve row groups: more than the windows of a batch of 4 hold, which are one each here."""
    with pytest.MonkeyPatch.context() as patch:
        # no parameter: the order's constants are part of its version, which checkpoints hold
        patch.setattr(epoch_order, "WINDOW_BYTES", 10 * 240)
        yield commit(*[token_table(start, 10) for start in range(0, 120, 10)])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_remote_store_yields_the_same_batches_with_one_request_per_row_group(
    many_units, world_size
):
    for rank in range(world_size):
        store = far(many_units)
        loader = TokenLoader(store, 4, 7, rank, world_size)
        got = contents(loader)
        assert_equal(got, contents(TokenLoader(many_units, 4, 7, rank, world_size)))
        assert len(store.objects.reads) == len(set(store.objects.reads))
        # every row group that this rank meets, once; those that two lanes share, twice
        assert len(store.objects.reads) <= 12 / world_size + epoch_order.num_strata(4)


class Cold:
    """A folder of which the page cache holds nothing, every second time."""

    def __init__(self, near):
        self.objects, self.answers = near, []

    def __getattr__(self, name):
        return getattr(self.objects, name)

    def read_cached(self, key, spans):
        self.answers.append(len(self.answers) % 2 == 0 and self.objects.read_cached(key, spans))
        return self.answers[-1]


def test_pages_that_are_not_cached_are_read(many_units):
    store = dataclasses.replace(many_units, objects=Cold(many_units.objects))
    loader = TokenLoader(store, 4, 7)
    assert_equal(contents(loader), contents(TokenLoader(many_units, 4, 7)))
    assert True in store.objects.answers
    assert False in store.objects.answers


def test_both_columns_of_a_row_group_are_one_request(many_units):
    store = far(many_units)
    batch = next(iter(TokenLoader(store, 4, 7, columns=["bits", "latent"])))
    assert bytes(batch["bits_BN"].flatten().tolist()) == b"xxxx"
    first = {key for key, *_ in store.objects.reads}
    assert len(first) == len(store.objects.reads)


def test_rank_without_rows_of_a_short_batch_gets_an_empty_batch(many_units):
    shares = [list(TokenLoader(many_units, 64, 7, rank, 64)) for rank in (0, 63)]
    assert shares[0][-1]["latent_BTKHW"].shape == (1, 2, 3, 4, 5)
    last = shares[1][-1]
    assert last["latent_BTKHW"].shape == (0, 2, 3, 4, 5)
    assert last["global_size"] == 32
    assert last["clip_ids"] == []


def test_large_remote_rows_are_fetched_one_by_one():
    wide = commit(token_table(0, 10, (2, 8, 64, 128)))
    store = far(wide)
    width = 2 * 8 * 64 * 128 * 2
    assert width >= epoch_order.ROW_BYTES
    assert_equal(contents(TokenLoader(store, 4, 0)), contents(TokenLoader(wide, 4, 0)))
    assert [length for *_, length in store.objects.reads] == [width] * 8


def test_resume_from_a_remote_store_reads_only_remaining_rows(many_units):
    loader = TokenLoader(many_units, 4, 7)
    whole = contents(loader)
    again = TokenLoader(far(many_units), 4, 7)
    again.load_state_dict({**loader.state_dict(), "epoch": 0, "step": 20})
    assert_equal(contents(again), whole[20:])
    assert len(again._snapshot.objects.reads) <= 8


@pytest.mark.parametrize("away", [False, True])
def test_state_after_the_last_batch_resumes_with_the_next_epoch(many_units, away):
    loader = TokenLoader(many_units, 4, 7)
    steps = loader.endless()
    for _ in range(len(loader)):
        next(steps)
    state = loader.state_dict()
    assert state["step"] == len(loader)
    again = TokenLoader(far(many_units) if away else many_units, 4, 7)
    again.load_state_dict(state)
    assert next(again.endless())["clip_ids"] == next(steps)["clip_ids"]


def test_local_cache_requests_every_span_once(many_units, tmp_path):
    once = far(many_units)
    first = contents(TokenLoader(once, 4, 7, cache=tmp_path / "cache"))
    assert once.objects.reads
    again = far(many_units)
    assert_equal(contents(TokenLoader(again, 4, 7, cache=tmp_path / "cache")), first)
    assert not again.objects.reads


def test_unusable_local_cache_does_not_stop_training(many_units, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    first = contents(TokenLoader(far(many_units), 4, 7, cache=Path("cache")))
    cut, flipped, folder, *_ = (path for path in Path("cache").iterdir() if path.is_file())
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    folder.unlink()
    folder.mkdir()
    for unread in (3, 1):  # those that were damaged are kept again
        again = far(many_units)
        assert_equal(contents(TokenLoader(again, 4, 7, cache=Path("cache"))), first)
        assert len(again.objects.reads) == unread
    (tmp_path / "file").touch()
    caplog.clear()
    assert_equal(contents(TokenLoader(far(many_units), 4, 7, cache=tmp_path / "file")), first)
    assert {record.getMessage()[:24] for record in caplog.records} == {
        "span cache failed, reading"[:24]
    }


def test_memory_of_batches_is_reused_only_when_unreferenced(many_units):
    kept = list(TokenLoader(many_units, 4, 7))
    for batch in kept:
        for clip, row in zip(batch["clip_ids"], batch["latent_BTKHW"], strict=True):
            assert torch.all(row == int(clip, 16))
    places = {batch["latent_BTKHW"].data_ptr() for batch in TokenLoader(many_units, 4, 7)}
    assert len(places) <= 6
    part = next(iter(TokenLoader(many_units, 4, 7)))["latent_BTKHW"][1:]
    before = part.clone()
    gc.collect()
    list(TokenLoader(many_units, 4, 7))
    assert torch.equal(part, before)


def test_buffers_of_odd_sizes_do_not_accumulate():
    buffers = BufferPool()
    for size in range(1000, 3000):
        assert buffers.empty(size).shape == (size,)
    assert (
        sum(len(memory) for kept in buffers._free.values() for memory in kept) <= 1024 + 2048 + 4096
    )


def test_file_with_another_column_name_in_its_footer_is_named():
    snapshot = commit(token_table(0, 10))
    (file,) = snapshot.files
    data = snapshot.objects.get(file.key)
    assert data.count(b"latent\x00") == 1  # its name in the schema
    snapshot.objects.put(file.key, data.replace(b"latent\x00", b"lbtent\x00"))
    with pytest.raises(StorageError, match=f"{file.key}: damaged"):
        TokenLoader(snapshot, 4, 7)


def test_truncated_file_is_named(many_units):
    snapshot = commit(*[token_table(start, 10) for start in range(0, 20, 10)])
    loader = TokenLoader(snapshot, 4, 7)
    victim = snapshot.files[1].key
    snapshot.objects.put(victim, snapshot.objects.get(victim)[:200])
    with pytest.raises(StorageError, match=f"{victim}.*shorter than"):
        list(loader)
    with pytest.raises(StorageError, match=victim):
        TokenLoader(snapshot, 4, 7)


@pytest.mark.parametrize("place", [-100, -500])
def test_damaged_footer_is_named(place):
    snapshot = commit(token_table(0, 10), token_table(10, 10))
    victim = snapshot.files[1].key
    data = bytearray(snapshot.objects.get(victim))
    data[place : place + 50] = bytes(50)
    snapshot.objects.put(victim, bytes(data))
    with pytest.raises(StorageError, match=f"{victim}: damaged"):
        TokenLoader(snapshot, 4, 7)


def test_equal_work_fills_batches_of_smaller_shapes():
    tables = token_table(0, 40, (2, 3, 4, 4)), token_table(40, 40, (1, 3, 2, 4))
    batches = list(TokenLoader(commit(*tables), 2, 0, split="", equal_work=True))
    sizes = {(b["latent_BTKHW"].shape[1:], len(b["clip_ids"])) for b in batches}
    assert sizes == {((2, 3, 4, 4), 2), ((1, 3, 2, 4), 8)}
    assert len(batches) == 25 == len(TokenLoader(commit(*tables), 2, 0, split="", equal_work=True))


def mixture(snapshots, weights, world=(0, 1)):
    loaders = {name: TokenLoader(snapshot, 4, 0, *world) for name, snapshot in snapshots.items()}
    return TokenMixture(loaders, weights, seed=5)


@pytest.fixture(scope="module")
def two_stores(many_units):
    return {"video": many_units, "image": commit(token_table(500, 30, (1, 3, 4, 5)))}


def test_mixture_keeps_shares_and_the_order_of_each_store(two_stores):
    mixed = mixture(two_stores, {"video": 2, "image": 1})
    blocks = [[(b["store"], b["clip_ids"]) for b in mixed] for _ in range(2)]
    assert [len(block) for block in blocks] == [BLOCK] * 2
    for block in blocks:
        assert sum(store == "video" for store, _ in block) == 667
    assert [store for store, _ in blocks[0]] != [store for store, _ in blocks[1]]
    for name, snapshot in two_stores.items():
        alone = TokenLoader(snapshot, 4, 0).endless()
        seen = [clips for block in blocks for store, clips in block if store == name]
        assert seen == [next(alone)["clip_ids"] for _ in seen]


@pytest.mark.slow
def test_mixture_resumes_anywhere_at_another_world_size(two_stores):
    weights = {"video": 0.7, "image": 0.3}
    mixed = mixture(two_stores, weights)
    whole = [b["clip_ids"] for _ in range(2) for b in mixed]
    for stop in (700, BLOCK, BLOCK + 3):
        first = mixture(two_stores, weights)
        seen = 0
        while seen < stop:
            for _ in first:
                seen += 1
                if seen == stop:
                    break
        ranks = [mixture(two_stores, weights, (rank, 2)) for rank in range(2)]
        for rank in ranks:
            rank.load_state_dict(first.state_dict())
        rest = zip(*([b["clip_ids"] for b in rank] for rank in ranks), strict=True)
        joined = [one + other for one, other in rest]
        assert joined == whole[stop : stop + len(joined)]


def test_bad_mixtures_are_rejected(two_stores):
    with pytest.raises(ConfigError, match="less than one step in 1000"):
        mixture(two_stores, {"video": 1e6, "image": 1})
    with pytest.raises(ConfigError, match="not all positive"):
        mixture(two_stores, {"video": -1, "image": 1})
    with pytest.raises(ConfigError, match="loaders"):
        mixture(two_stores, {"video": 1})
    sizes = {"video": 1, "image": 2}
    ranks = {name: TokenLoader(two_stores[name], 4, 0, 0, sizes[name]) for name in sizes}
    with pytest.raises(ConfigError, match=r"several ranks: .'image': '0 of 2', 'video': '0 of 1'"):
        TokenMixture(ranks, {"video": 1, "image": 1}, 0)
    made = token_table(500, 30).replace_schema_metadata({"tokenizer_digest": "b" * 64})
    with pytest.raises(ConfigError, match=r"several tokenizers: .'image': 'bbb"):
        mixture({**two_stores, "image": commit(made)}, {"video": 1, "image": 1})
    state = mixture(two_stores, {"video": 1, "image": 1}).state_dict()
    with pytest.raises(ConfigError, match=r"image.quota 500, this mixture 250"):
        mixture(two_stores, {"video": 3, "image": 1}).load_state_dict(state)


def test_order_depends_on_the_digest_not_on_the_commit(many_units):
    tables = [token_table(start, 10) for start in range(0, 40, 10)]
    one, other = commit(*tables), commit(*reversed(tables))
    assert one.digest == other.digest
    assert [f.sha256 for f in one.files] != [f.sha256 for f in other.files]
    assert ids(TokenLoader(one, 4, 7)) == ids(TokenLoader(other, 4, 7))
    # several windows: here the bytes of a row matter to the order
    by_columns = [
        ids(TokenLoader(many_units, 4, 7, columns=columns))
        for columns in (["bits"], ["latent"], ["bits", "latent"])
    ]
    assert by_columns[0] == by_columns[1] == by_columns[2]


def test_state_of_another_split_is_rejected(snapshot):
    rows = token_table(0, 10)
    half = rows.set_column(2, "split", [["val", "train"] * 5])
    state = TokenLoader(commit(half), 1, 0).state_dict()
    with pytest.raises(ConfigError, match="split train, this loader val"):
        TokenLoader(commit(half), 1, 0, split="val").load_state_dict(state)
    del state["split"]
    with pytest.raises(ConfigError, match="split None, this loader train"):
        TokenLoader(commit(half), 1, 0).load_state_dict(state)


@pytest.mark.parametrize("columns", [[], ["latents"], ["label"]])
def test_columns_that_are_no_payload_are_rejected(snapshot, columns):
    with pytest.raises(ConfigError, match=r"are not among \['bits', 'latent'\]"):
        TokenLoader(snapshot, 4, 0, columns=columns)


@pytest.mark.parametrize("rank_of", [(0, 0), (2, 2), (-1, 2)])
def test_ranks_that_do_not_fit_are_rejected(snapshot, rank_of):
    with pytest.raises(ConfigError, match="batch_size: 4 is not positive, or there is no rank"):
        TokenLoader(snapshot, 4, 0, *rank_of)
    with pytest.raises(ConfigError, match="no rows"):
        TokenLoader(commit(), 4, 0)


def by_whom(snapshot, work_s, monkeypatch):
    """Return whether a thread of its own read each batch, for a caller who works between them.

    By a clock of each thread, which reading and working advance: no load makes it run faster.
    """
    loader, readers, clock = TokenLoader(snapshot, 4, 7), [], threading.local()
    read = loader._payload.read

    def passes(seconds):
        clock.now = getattr(clock, "now", 0.0) + seconds
        return clock.now

    def noting(*args, wait):
        readers.append(threading.current_thread() is not threading.main_thread())
        passes(0.005)
        return read(*args, wait=wait)

    loader._payload.read = noting
    monkeypatch.setattr(time, "perf_counter", lambda: passes(0))
    for _ in loader:
        passes(work_s)
    return readers


def test_threads_read_ahead_only_for_a_caller_that_works_between_batches(many_units, monkeypatch):
    assert not any(by_whom(many_units, 0, monkeypatch))
    readers = by_whom(many_units, 0.02, monkeypatch)
    assert all(readers[2:])  # the first two fill what was empty
    assert len(readers) == len(TokenLoader(many_units, 4, 7))


def test_failed_request_is_raised_before_the_queue_is_drained(monkeypatch):
    wide = commit(token_table(0, 200, (2, 8, 64, 128)))
    remote = dataclasses.replace(wide, objects=RemoteObjects(wide.objects))
    loader, reads, is_over = TokenLoader(remote, 32, 0), [], threading.Event()
    awaited = loader._rank_rows(loader._order(), 0)[0]

    def read(rows_B, _):
        reads.append(rows_B[0])
        assert rows_B[0] == awaited or is_over.wait(60)
        raise TransientStorageError("a", "no answer")

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options):
            super().shutdown(wait=False, cancel_futures=options["cancel_futures"])
            is_over.set()  # nothing that was queued runs from here on
            super().shutdown()

    loader._payload.read = read
    monkeypatch.setattr(token_loader, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(token_loader, "REMOTE_PREFETCH_BATCHES", 1)  # so it is the first in line
    with pytest.raises(TransientStorageError, match="no answer"):
        next(iter(loader))
    assert len(reads) <= 1 + REQUESTS  # of 32 of the first batch


def test_mixture_continues_after_a_failed_read(two_stores, monkeypatch):
    weights = {"video": 1, "image": 1}
    whole = ids(mixture(two_stores, weights))
    mixed, seen = mixture(two_stores, weights), []
    with monkeypatch.context() as patch:
        patch.setattr(Payload, "read", fails_at(9, Payload.read))
        with pytest.raises(TransientStorageError):
            seen.extend(batch["clip_ids"] for batch in mixed)
    seen.extend(batch["clip_ids"] for batch in mixed)
    assert seen == whole


def fails_at(call, read):
    calls = itertools.count()

    def failing(*args, **options):
        if next(calls) == call:
            raise TransientStorageError("a", "no answer")
        return read(*args, **options)

    return failing
