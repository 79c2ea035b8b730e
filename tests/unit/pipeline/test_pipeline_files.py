"""Every file in `pipelines/` can be read and planned, and takes another input."""

from pathlib import Path

import pytest

from videoar import api
from videoar.core.errors import ConfigError, SnapshotNotFoundError

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "pipelines").glob("*.yaml"))
OF_A_CHAMPION = {"generate.yaml", "evaluate.yaml", "retrain.yaml"}
NEEDS_MODELS = {"curate_models.yaml"}
"""Their options name folders with models of the user."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pipeline_file_is_valid_and_planned(path, tmp_path):
    assert api.validate_pipeline(path) == []
    store = api.open_store((tmp_path / "store").as_uri())
    overrides = ["inputs.videos=rendered://shapes?num_videos=6&seed=0"]
    if path.name in OF_A_CHAMPION:
        with pytest.raises(SnapshotNotFoundError, match="champion: no such ref"):
            api.plan(store, path)
        return
    if path.name in NEEDS_MODELS:
        with pytest.raises(ConfigError, match="no such model folder"):
            api.plan(store, path, overrides)
        return
    plan = api.plan(store, path, overrides)
    actions = {stage.name: stage.action for stage in plan}
    for name, action in actions.items():
        assert action == ("skipped" if name.startswith("champion_") else "run"), name


def test_pipelines_of_the_paper_are_there():
    names = {"pretrain", "pretrain-ucf", "quickstart", "train-gpu", "tokenize", "curate"}
    assert names <= {path.stem for path in FILES}


def test_ucf_model_may_be_xl(tmp_path):
    store = api.open_store((tmp_path / "store").as_uri())
    path = ROOT / "pipelines" / "pretrain-ucf.yaml"
    assert api.plan(store, path, ["stages.model.preset=XL"])
