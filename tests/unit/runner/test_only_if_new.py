"""`only_if_new`: without new sources a run skips all stages, whatever else has changed since.

And `ref://NAME/PORT`, the parents of what a ref names, from which such a run starts.
"""

from pathlib import Path

import pytest

from tests.support.child_process import exit_code, preload
from tests.support.toy_runs import execute, execute_at, resume, toy_document, write_videos
from tests.support.toys import RATED, REGISTRY
from videoar import api
from videoar.core.errors import GateError, SnapshotNotFoundError, StageError
from videoar.pipeline.mistakes import SpecError
from videoar.pipeline.spec import parse_pipeline
from videoar.records.run import Run
from videoar.records.run_record import load_run
from videoar.runner.plan import plan
from videoar.storage.ledger import Refs
from videoar.storage.store import Store

preload(__name__)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "a.mp4")


def document(videos: Path, value: float = 0.5, least: float = 0.2) -> dict:
    """Return a pipeline: a model whose score is `value`, and a gate that wants `least`."""
    result = toy_document(videos, gate=None) | {"only_if_new": "videos"}
    ports = {"model": "model", "scores": "scores"}
    result["stages"] |= {
        "scores": {"stage": "rate", "from": {"model": "model"}, "value": value},
        "gate": {
            "stage": "promote", "from": ports, "rules": [{"metric": RATED, "min": least}],
        },
    }  # fmt: skip
    return result


def skipped_since(store: Store, doc: dict, run_id: str) -> bool:
    """Run; return whether all was skipped for that reason, and that the plan had said so."""
    plans = plan(parse_pipeline(doc, "toy.yaml", REGISTRY), store, REGISTRY)
    run = execute(store, doc)
    reason = f"nothing new in videos since run {run_id}"
    of_plan = {(stage.action, stage.reason) for stage in plans} == {("skipped", reason)}
    of_run = {(stage.status, stage.reason) for stage in run.stages} == {("SKIPPED", reason)}
    assert of_plan is of_run
    assert run.status == "SUCCEEDED"
    return of_run


def test_run_without_new_sources_skips_all_and_names_the_run_that_had_them(
    store: Store, videos: Path
):
    first = execute(store, document(videos))
    assert skipped_since(store, document(videos), first.run_id)
    with pytest.raises(GateError, match=rf"no gate decision .nothing new .* {first.run_id}"):
        api.gate(store)
    # neither a removed file nor a run that was skipped counts
    (write_videos(videos, "b.mp4") / "a.mp4").unlink()
    second = execute(store, document(videos))
    assert second.stage("big").status == "SUCCEEDED"
    for _ in range(2):
        assert skipped_since(store, document(videos), second.run_id)


def test_changed_file_and_changed_options_are_new(store: Store, videos: Path):
    first = execute(store, document(videos))
    assert not skipped_since(store, document(videos, value=0.6), first.run_id)
    (videos / "a.mp4").write_bytes(b"y" * 11)
    second = execute(store, document(videos))
    assert second.stage("big").status == "SUCCEEDED"
    assert skipped_since(store, document(videos), second.run_id)
    (videos / "labels.csv").write_text("file,licence\na.mp4,CC0-1.0\n")
    assert not skipped_since(store, document(videos), second.run_id)


def test_blocked_run_has_used_up_its_sources_and_a_part_or_failed_run_has_not(
    store: Store, videos: Path
):
    strict = document(videos, least=0.9)
    execute(store, strict, "00a", until="big")
    (videos / "explode.mp4").write_bytes(b"x" * 10)
    with pytest.raises(StageError):
        execute(store, strict, "00b")
    (videos / "explode.mp4").unlink()
    with pytest.raises(GateError):
        execute(store, strict, "00c")
    assert skipped_since(store, strict, "00c")
    # of the run itself a repetition by hand is decided again, and not compared with itself
    with pytest.raises(GateError):
        resume(store, "00c")


@pytest.mark.slow
@pytest.mark.parametrize("crash", ["counting-4", "decision-recorded", "ref-moved"])
def test_killed_run_has_not_used_up_its_sources_and_resumes(store: Store, videos: Path, crash: str):
    doc = document(videos)
    assert exit_code(execute_at, store.url, doc, "00a", VIDEOAR_CRASH_AT=crash) == -9
    assert load_run(store, "00a").status == "INTERRUPTED"
    assert not skipped_since(store, doc, "00a")
    assert resume(store, "00a").status == "SUCCEEDED"
    assert len(store.refs.history("champion")) == 1


def test_ref_that_moves_during_the_decision_does_not_train_again(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    """A model is trained from a parent of the champion, and compared with the champion."""
    execute(store, document(videos), "001")
    doc = document(videos, value=0.55)
    doc["inputs"] |= {"start": "ref://champion/sources/sources", "champion": "ref://champion"}
    rules = [{"metric": RATED, "max_regression": 0.1}]
    ports = {"model": "model", "scores": "scores", "champion_scores": "champion_scores"}
    for prefix, model in (("", "model"), ("champion_", "champion")):
        of = {"model": model, "samples": f"{prefix}samples"}
        doc["stages"] |= {
            f"{prefix}samples": {"stage": "draw", "from": {"model": model}},
            f"{prefix}scores": {"stage": "rate", "from": of, "value": 0.55},
        }
    doc["stages"]["model"]["steps"] = 4
    doc["stages"]["few"]["from"] = {"sources": "start"}
    doc["stages"]["gate"] = {"stage": "promote", "from": ports, "rules": rules}
    advance = Refs.advance

    def second(refs: Refs, *arguments, **options) -> int:
        monkeypatch.setattr(Refs, "advance", advance)
        write_videos(videos, "other.mp4")
        execute(store, document(videos), "003")
        return advance(refs, *arguments, **options)

    monkeypatch.setattr(Refs, "advance", second)
    execute(store, doc, "002")
    of_other, run = load_run(store, "003"), load_run(store, "002")
    assert run.stage("champion_samples").inputs["model"] == of_other.outputs["model"]
    assert run.stage("few").inputs["sources"] == load_run(store, "001").outputs["big"]
    assert store.refs.head("champion") == run.outputs["model"] != of_other.outputs["model"]


@pytest.mark.parametrize("name", ["video", "champion", 3])
def test_only_if_new_must_name_a_listed_input(videos: Path, name: object):
    doc = document(videos) | {"only_if_new": name}
    doc["inputs"]["champion"] = "ref://champion"
    with pytest.raises(SpecError, match=r"only_if_new: .* is no input that lists files .*videos"):
        parse_pipeline(doc, "toy.yaml", REGISTRY)


def of_parent(store: Store, videos: Path, url: str) -> Run:
    """Run a pipeline whose only stage reads rows of `sources@1` that a ref names."""
    stages = {"few": {"stage": "pick", "from": {"sources": "rows"}}}
    doc = {"pipeline": "reader", "inputs": {"rows": url}, "stages": stages}
    return execute(store, doc)


@pytest.mark.parametrize(("path", "stage"), [("sources", "few"), ("sources/sources", "big")])
def test_parent_of_a_ref_is_the_input_that_its_stage_read(
    store: Store, videos: Path, path: str, stage: str
):
    first = execute(store, document(videos))
    run = of_parent(store, videos, f"ref://champion/{path}")
    assert run.stage("few").inputs["sources"] == first.outputs[stage]


def test_parent_that_is_missing_is_named_and_may_be_optional(store: Store, videos: Path):
    missing = "ref://champion/sources"
    with pytest.raises(
        SnapshotNotFoundError, match=r"inputs\.rows: champion: no such ref"
    ) as error:
        of_parent(store, videos, missing)
    assert error.value.exit_code == 2
    assert of_parent(store, videos, f"{missing}?optional=true").stage("few").status == "SKIPPED"
    model = execute(store, document(videos)).outputs["model"]
    what = f"inputs.rows: {model}: was made without an input at port start .it has sources"
    with pytest.raises(SnapshotNotFoundError, match=what):
        of_parent(store, videos, "ref://champion/start")
    absent = of_parent(store, videos, "ref://champion/start?optional=true")
    assert absent.stage("few").status == "SKIPPED"
