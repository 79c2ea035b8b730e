"""Labelled clips to the classifier whose features are a distance within a domain."""

import numpy as np
import pytest
import torch

from tests.support.clip_rows import clips_of, drawn_rows
from tests.support.loop_rank import MemoryRank, commit
from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.media.synthetic import Scene
from videoar.pipeline.context import StageContext
from videoar.stages.train_domain.stage import TrainDomainConfig, TrainDomainStage
from videoar.storage.store import open_store
from videoar.training.classifier import ClassifierTrainer
from videoar.training.config import ClassifierTraining
from videoar.training.model_store import load_classifier, load_tokenizer

SMALL = {"width": 8, "size_px": 16, "num_frames": 8, "batch_clips": 8, "learning_rate": 1e-2}
COLOURS = ("red", "blue")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store((tmp_path_factory.mktemp("domain") / "store").as_uri())


@pytest.fixture(scope="module")
def rows(store):
    """Eight clips of two colours, which are their labels; two of them in the val split."""
    scenes = [Scene("square", COLOURS[i % 2], "left", seed=i) for i in range(8)]
    rows = drawn_rows(store, scenes)
    return [
        row | {"label": COLOURS[i % 2], "split": "val" if i in {2, 5} else "train"}
        for i, row in enumerate(rows)
    ]


def train(store, clips, rank, **options):
    stage = TrainDomainStage(TrainDomainConfig(**{**SMALL, "steps": 30, **options}))
    return stage.run({"clips": clips}, StageContext(store), rank)


def test_classifier_of_colours_is_published_and_resumes_exactly(store, rows, tmp_path):
    clips, rank = clips_of(store, rows), MemoryRank(tmp_path / "a")
    output = train(store, clips, rank, checkpoint_every=20)
    assert output.metrics == {"val/accuracy": 1.0, "val/chance": 0.5}
    killed = MemoryRank(tmp_path / "b")
    killed.saved = dict(rank.saved)
    assert train(store, clips, killed).rows.equals(output.rows)
    assert killed.steps == [*range(21, 31)]
    snapshot = commit(store, "domain", "models@1", output.rows)
    network, digest = load_classifier(snapshot, store)
    assert (network.cfg.classes, digest) == (("blue", "red"), output.rows["digest"][0].as_py())
    with pytest.raises(ContractError, match="holds a classifier, not a tokenizer"):
        load_tokenizer(snapshot, store)


def test_classifier_near_chance_is_refused(store, rows, tmp_path):
    # labels without any relation to the content
    mixed = [row | {"label": COLOURS[i // 2 % 2]} for i, row in enumerate(rows)]
    with pytest.raises(GateError, match=r"accuracy 0\.\d\d on 2 val clips, guessing has 0\.50"):
        train(store, clips_of(store, mixed), MemoryRank(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "red"}, r"labels of the train split: \['red'\], need two"),
        ({"label": None}, r"labels of the train split: \[\], need two"),
        ({"split": "train"}, "no labelled clip in the val split"),
    ],
)
def test_clips_without_classes_or_val_split_are_refused(store, rows, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(store, clips_of(store, [row | changes for row in rows]), MemoryRank(tmp_path))


def test_label_of_the_val_split_only_is_refused(store, rows, tmp_path):
    other = [row | ({"label": "green"} if row["split"] == "val" else {}) for row in rows]
    with pytest.raises(ConfigError, match=r"labels of the val split only: \['green'\]"):
        train(store, clips_of(store, other), MemoryRank(tmp_path))


def test_features_do_not_depend_on_the_batch_and_short_clips_repeat_their_last_frame():
    options = ClassifierTraining(**SMALL)
    net = ClassifierTrainer(options, COLOURS, [np.zeros((8, 16, 16, 3), np.uint8)], [0], "cpu").net
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 8, 20, 24, 3), dtype=torch.uint8, generator=random)
    both, first = net.features(frames), net.features(frames[:1])
    torch.testing.assert_close(both[:1], first, rtol=1e-5, atol=1e-6)
    held = torch.cat([frames[:1, :5], frames[:1, 4:5].expand(-1, 3, -1, -1, -1)], dim=1)
    assert torch.equal(net.features(frames[:1, :5]), net.features(held))
    assert first.shape == (1, 64)
