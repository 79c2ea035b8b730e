"""The loader's order: pure, exactly once, the same at any world size, resumable anywhere."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from videoar.core.errors import ConfigError, StorageError
from videoar.core.types import Provenance
from videoar.storage import open_store
from videoar.storage.token_codec import checksum
from videoar.training.batches import TokenLoader

torch.set_num_threads(1)


def token_table(start, rows, shape=(2, 3, 4, 5), corrupt=None):
    ids = range(start, start + rows)
    latents = [np.full(shape, i, "<f2").tobytes() for i in ids]
    sums = [checksum(latent) + (i == corrupt) for i, latent in zip(ids, latents, strict=True)]
    return pa.table({
        "clip_id": [f"{i:032x}" for i in ids],
        "source_id": [f"{i:064x}" for i in ids],
        "split": ["val" if i % 5 == 4 else "train" for i in ids],
        "label": [f"class {i % 3}" for i in ids],
        "caption": [None if i == 0 else f"caption {i}" for i in ids],
        **dict.fromkeys(("rate_fps", "start_s", "duration_s"), [1.0] * rows),
        **{name: [size] * rows for name, size in zip("tkhw", shape, strict=True)},
        "bits": [b"x"] * rows,
        "latent": latents,
        "bits_xxh3": [0] * rows,
        "latent_xxh3": sums,
    })


def commit(*tables):
    store = open_store(f"memory://{np.random.default_rng().integers(1 << 62)}")
    dataset = store.dataset("tokens", "tokens@1")
    files = [dataset.write(table) for table in tables]
    made = Provenance(run_id="r", pipeline="p", stage="s", fingerprint="f", code_version="c")
    return dataset.commit(files, made, {})


@pytest.fixture(scope="module")
def snapshot():
    return commit(token_table(0, 23), token_table(23, 14), token_table(37, 9, (2, 3, 4, 4)))


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def ids(batches):
    return [batch["clip_ids"] for batch in batches]


def test_every_row_exactly_once_and_its_own_values(snapshot):
    seen = []
    for batch in TokenLoader(snapshot, 4, seed=0):
        latent = batch["latent_BKTHW"]
        assert latent.dtype == torch.float32
        assert latent.shape[1:] in {(3, 2, 4, 5), (3, 2, 4, 4)}
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
    latent = next(iter(TokenLoader(commit(table), 1, 0)))["latent_BKTHW"][0]
    np.testing.assert_array_equal(latent.numpy(), values.astype(np.float32).transpose(1, 0, 2, 3))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_read_the_same_global_batches(snapshot, world_size):
    whole = ids(TokenLoader(snapshot, 4, seed=1))
    ranks = [
        ids(TokenLoader(snapshot, 4, 1, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == whole


def test_order_depends_on_seed_and_epoch_alone(snapshot):
    loader = TokenLoader(snapshot, 4, seed=1)
    first, second = ids(loader), ids(loader)
    assert first != second
    assert sorted(flat(first)) == sorted(flat(second))
    again = TokenLoader(snapshot, 4, seed=1)
    assert [ids(again), ids(again)] == [first, second]
    assert ids(TokenLoader(snapshot, 4, seed=2)) != first


@pytest.mark.parametrize("stop", [1, 3, 9])
def test_resume_continues_exactly_even_at_another_world_size(snapshot, stop):
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


def test_a_foreign_state_is_refused(snapshot):
    state = TokenLoader(snapshot, 4, seed=3).state_dict()
    with pytest.raises(ConfigError, match="seed 3, this loader 4"):
        TokenLoader(snapshot, 4, seed=4).load_state_dict(state)


def test_splits_and_bad_sizes(snapshot):
    validation = flat(ids(TokenLoader(snapshot, 4, 0, split="val")))
    assert sorted(int(clip, 16) for clip in validation) == list(range(4, 46, 5))
    assert TokenLoader(snapshot, 4, 0, split="").num_rows == 46
    with pytest.raises(ConfigError, match="not a multiple"):
        TokenLoader(snapshot, 4, 0, world_size=3)
    with pytest.raises(ConfigError, match="no rows"):
        TokenLoader(commit(token_table(0, 2)), 4, 0, split="val")


def test_rows_of_two_tokenizers_do_not_mix():
    tables = [
        token_table(start, 3).replace_schema_metadata({"tokenizer_digest": maker})
        for start, maker in ((0, "one"), (3, "two"))
    ]
    with pytest.raises(ConfigError, match="tokens of 2 tokenizers"):
        TokenLoader(commit(*tables), 2, 0)


def test_a_wrong_checksum_names_the_clip():
    bad = commit(token_table(0, 3, corrupt=1))
    with pytest.raises(StorageError, match=f"{1:032x}: latent fails its checksum"):
        list(TokenLoader(bad, 3, 0, verify=True))
    assert len(ids(TokenLoader(bad, 3, 0))) == 1
