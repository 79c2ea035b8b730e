"""A loader has one live iterator, in the process that trains: never a row twice, silently."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.support.numbered_tokens import commit, token_table
from videoar.core.errors import ConfigError
from videoar.model.tokenizer.config import TokenizerTraining
from videoar.training.data.excerpt_loader import ExcerptLoader
from videoar.training.data.mixture import TokenMixture
from videoar.training.data.token_loader import TokenLoader

torch.set_num_threads(1)
SHARED = "cannot be shared by the workers of a DataLoader"


def token_loader():
    return TokenLoader(commit(token_table(0, 23)), 4, seed=0)


def token_mixture():
    return TokenMixture({"a": token_loader(), "b": token_loader()}, {"a": 1, "b": 1}, seed=0)


both = pytest.mark.parametrize("make", [token_loader, token_mixture])


class Batches(IterableDataset):
    """The first batches of a loader, as a user's own dataset."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        yield from itertools.islice(self.loader, 3)


class Excerpts(IterableDataset):
    """The batches of an excerpt loader."""

    def __init__(self, read):
        self.read = read

    def __iter__(self):
        yield from (int(self.read(step).parts[0][0].sum()) for step in range(1, 3))


@both
def test_workers_of_a_dataloader_are_refused(make):
    with pytest.raises(RuntimeError, match=SHARED):
        list(DataLoader(Batches(make()), batch_size=None, num_workers=2))


@both
def test_dataloader_in_the_same_process_yields_the_same_batches_and_position(make):
    loader, plain = make(), make()
    through = list(DataLoader(Batches(loader), batch_size=None))
    expected = list(itertools.islice(plain, 3))
    assert [b["clip_ids"] for b in through] == [b["clip_ids"] for b in expected]
    assert loader.state_dict() == plain.state_dict()


@both
def test_loader_is_no_dataset_of_items(make):
    with pytest.raises(ConfigError, match="iterate the loader itself"):
        next(iter(DataLoader(make())))


@both
@pytest.mark.parametrize("change", ["begin", "seek", "load"])
def test_older_iterator_is_refused_and_the_newest_one_keeps_the_position(make, change):
    loader, plain = make(), make()
    expected = [batch["clip_ids"] for batch in itertools.islice(plain, 5)]
    older = iter(loader)
    seen = [next(older)["clip_ids"]]
    if change == "load":
        loader.load_state_dict(loader.state_dict())
    elif change == "seek" and make is token_loader:
        loader.seek(1)
    newer = iter(loader)
    seen += [next(newer)["clip_ids"]]
    with pytest.raises(ConfigError, match="another iterator was begun"):
        next(older)
    seen += [next(newer)["clip_ids"] for _ in range(3)]
    assert seen == expected
    assert loader.state_dict() == plain.state_dict()


@both
def test_iterator_is_refused_after_a_position_was_set(make):
    loader = make()
    state, older = loader.state_dict(), iter(loader)
    next(older)
    loader.load_state_dict(state)
    with pytest.raises(ConfigError, match="a position set"):
        next(older)
    assert loader.state_dict() == state


def test_excerpts_in_a_worker_are_refused_where_a_forked_thread_would_hang():
    clips = [np.full((9, 4, 4, 3), number, np.uint8) for number in range(4)]
    options = TokenizerTraining(steps=8, batch_clips=2, excerpt_frames=5)
    loader = ExcerptLoader(clips, options, [(4, 4)] * 4)
    expected = [loader.batch(step).parts[0][0].sum() for step in range(1, 3)]
    workers = {"batch_size": None, "num_workers": 1, "timeout": 30}
    with pytest.raises(RuntimeError, match=SHARED):
        list(DataLoader(Excerpts(loader.batch), **workers))
    assert list(DataLoader(Excerpts(loader.read), **workers)) == expected
