"""Retraining by `pipelines/retrain.yaml`: three batches, one that is refused, and nothing new."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.small_pipeline import OVERRIDES, PIPELINE, ROOT, sets, videoar
from videoar.media.synthetic import draw, scenes
from videoar.media.transcode import encode
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow

RETRAIN = ROOT / "pipelines" / "retrain.yaml"
SIZES = [o for o in OVERRIDES if o.startswith(("stages.clips.", "stages.tokens.min_psnr_db"))]
FIRST = [
    *OVERRIDES,
    "stages.evalset.num_prompts=4",
    "stages.evalset.min_samples=16",
    "stages.clips.batch_folders=true",
]
LATER = [
    *SIZES,
    "stages.good.override={allowed_licences: [CC0-1.0]}",
    "stages.model.training.phases=[{steps: 3, batch_size: 2, stores: {old: {}, new: {}}}]",
    "stages.model.training.validation.points=1",
    "stages.release.rules=[{metric: temporal_flickering, noninferior: 100}]",
]
# a background each: in one background, scenes of two colours are near duplicates
SCENES = (replace(scene, seed=seed) for seed, scene in enumerate(scenes()))


class Batches:
    """A folder that grows by batches, and the runs on it."""

    def __init__(self, folder: Path) -> None:
        self.videos, self.store = folder / "videos", (folder / "store").as_uri()
        self._rows: list[dict[str, str]] = []

    def add(self, name: str, licence: str = "CC0-1.0", count: int = 6) -> None:
        """Draw a batch of videos, each in two scenes."""
        (self.videos / name).mkdir(parents=True)
        for i in range(count):
            scene = next(SCENES)
            file = f"{name}/{i}.mp4"
            encode(draw(scene, 24, 64, 8.0), self.videos / file, 8.0)
            self._rows.append({
                "file": file, "label": scene.shape, "label_text": scene.prompt,
                "licence": licence, "split": "val" if i % 3 == 0 else "train",
            })  # fmt: skip
        with (self.videos / "labels.csv").open("w") as file:
            table = csv.DictWriter(file, self._rows[0])
            table.writeheader()
            table.writerows(self._rows)

    def call(self, verb: str, pipeline: Path, overrides: list[str], code: int = 0) -> dict:
        extra = f"inputs.videos={self.videos}"
        return videoar(
            verb, str(pipeline), *sets(extra, base=overrides), store=self.store, code=code
        )

    def retrain(self, code: int = 0, verb: str = "run") -> dict:
        return self.call(verb, RETRAIN, LATER, code)

    @property
    def champion(self) -> str | None:
        return open_store(self.store).refs.head("champion")


def shards(run: dict, stage: str) -> tuple[int, int]:
    """Return how many shards were found, and how many were computed."""
    counts = next(s for s in run["stages"] if s["name"] == stage)["shards"]
    assert counts["planned"] == counts["cached"] + counts["done"]
    return counts["cached"], counts["done"]


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Callable[[], tuple[Batches, dict]]:
    batches = Batches(tmp_path_factory.mktemp("retrain"))
    batches.add("batch-1")
    refused = batches.retrain(code=2)["stderr"]
    assert "error: inputs.champion: champion: no such ref in" in refused
    assert videoar("ls", store=batches.store)["runs"] == []
    return batches, batches.call("run", PIPELINE, FIRST)


def test_batches_cost_their_own_clips_alone_and_nothing_new_runs_nothing(first):
    batches, run = first
    old = {stage: sum(shards(run, stage)) for stage in ("clips", "tokens")}
    champion = run["outputs"]["model"]
    for name in ("batch-2", "batch-3"):
        batches.add(name)
        run = batches.retrain()
        assert batches.champion == run["outputs"]["model"] != champion
        model = next(s for s in run["stages"] if s["name"] == "model")
        assert model["inputs"]["start"] == champion
        for stage in old:
            found, computed = shards(run, stage)
            assert found == old[stage]
            assert computed > 0
            old[stage] += computed
        champion = run["outputs"]["model"]
    # whatever the champion is
    videoar("rollback", "champion", store=batches.store)
    assert batches.champion != champion
    reason = f"nothing new in videos since run {run['run_id']}"
    plan = batches.retrain(verb="plan")
    assert {(s["action"], s["reason"]) for s in plan["stages"]} == {("skipped", reason)}
    again = batches.retrain()
    assert {(s["status"], s["reason"]) for s in again["stages"]} == {("SKIPPED", reason)}
    assert again["status"] == "SUCCEEDED"
    page = Path(videoar("report", again["run_id"], store=batches.store)["path"])
    assert reason in page.read_text(encoding="utf-8")
    videoar("promote", champion, store=batches.store)


def test_batch_without_a_permitted_licence_is_not_promoted_and_the_page_says_why(first):
    batches, _ = first
    before = batches.champion
    batches.add("batch-9", licence="unknown")
    failed = batches.retrain(code=4)
    assert "were seen before" in failed["stderr"]
    assert batches.champion == before
    undecided = videoar("gate", store=batches.store, code=4)["stderr"]
    assert "has no gate decision (pretrain.seen: all" in undecided
    run = videoar("status", store=batches.store)
    assert run["status"] == "GATE_BLOCKED"
    page = Path(videoar("report", run["run_id"], store=batches.store)["path"])
    text = page.read_text(encoding="utf-8")
    assert "were seen before" in text
    assert "licence denied" in text.lower()
    # its sources are used up: the next night asks for none of it again
    skipped = batches.retrain()["stages"]
    assert {s["reason"] for s in skipped} == {f"nothing new in videos since run {run['run_id']}"}
