"""The small pipeline with a frozen text encoder from a local folder."""

import pytest

from tests.support import tiny_models
from tests.support.small_pipeline import PIPELINE, sets, videoar

UNTIL_SAMPLES = (str(PIPELINE), "--until", "samples")


@pytest.mark.slow
def test_pipeline_trains_and_generates_with_a_frozen_text_encoder(tmp_path):
    store = (tmp_path / "store").as_uri()
    folder, other = (tiny_models.t5(tmp_path / n, seed=i) for i, n in enumerate(("t5", "other")))

    def options(model, samples):
        encoders = {"model": model, "samples": samples}
        changes = [f"stages.{name}.text_encoder={path}" for name, path in encoders.items()]
        return sets("stages.evalset.pin=null", *changes)  # a frozen set would be read and run again

    run = videoar("run", *UNTIL_SAMPLES, *options(folder, folder), store=store)
    assert run["status"] == "SUCCEEDED"
    plan = videoar("plan", *UNTIL_SAMPLES, *options(folder, folder), store=store)
    actions = {stage["name"]: stage["action"] for stage in plan["stages"]}
    assert actions["model"] == actions["samples"] == "cached"
    plan = videoar("plan", *UNTIL_SAMPLES, *options(other, other), store=store)
    actions = {stage["name"]: stage["action"] for stage in plan["stages"]}
    assert (actions["tokens"], actions["model"]) == ("cached", "run")
    failed = videoar("run", *UNTIL_SAMPLES, *options(folder, other), store=store, code=2)
    assert f"{other}: digest" in failed["stderr"]
    missing = tmp_path / "missing"
    failed = videoar("run", *UNTIL_SAMPLES, *options(missing, folder), store=store, code=2)
    assert f"{missing}: no such model folder" in failed["stderr"]
