"""Optional inputs: without the ref, stages that need it are skipped, in plan, run, page and resume.

The champion of a gate is one: it is scored beside the candidate, if there is a champion.
"""

from pathlib import Path

import pytest

from tests.support.child_process import exit_code, preload
from tests.support.toy_runs import execute, execute_at, resume, toy_document, write_videos
from tests.support.toys import RATED, REGISTRY
from videoar import api
from videoar.core.errors import GateError, SnapshotNotFoundError
from videoar.pipeline.spec import StageSpec, parse_pipeline
from videoar.records.run import Run
from videoar.records.run_record import load_run
from videoar.runner.decide import skip_reason
from videoar.runner.plan import plan
from videoar.stages.features.stage import FeaturesConfig
from videoar.storage.ledger import Refs
from videoar.storage.store import Store

preload(__name__)
OF_CHAMPION = ("champion_samples", "champion_scores")
ABSENT = "input champion is absent: there is no ref://champion"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "a.mp4")


def document(videos: Path, steps: int, url: str = "ref://champion?optional=true") -> dict:
    """Return a pipeline that scores a model and the champion; the score is a tenth of the steps."""
    result = toy_document(videos, model={"steps": steps}, gate=None)
    result["inputs"]["champion"] = url
    rules = [{"metric": RATED, "max_regression": 0.1}]
    ports = {"model": "model", "scores": "scores", "champion_scores": "champion_scores"}
    for prefix, model in (("", "model"), ("champion_", "champion")):
        of = {"model": model, "samples": f"{prefix}samples"}
        result["stages"] |= {
            f"{prefix}samples": {"stage": "draw", "from": {"model": model}},
            f"{prefix}scores": {"stage": "rate", "from": of},
        }
    result["stages"]["gate"] = {"stage": "promote", "from": ports, "rules": rules}
    return result


def planned(store: Store, doc: dict) -> dict[str, tuple[str, str]]:
    stages = plan(parse_pipeline(doc, "toy.yaml", REGISTRY), store, REGISTRY)
    return {stage.name: (stage.action, stage.reason) for stage in stages}


def statuses(run: Run) -> dict[str, str]:
    return {name: run.stage(name).status for name in (*OF_CHAMPION, "gate")}


def test_without_the_ref_stages_that_need_it_are_skipped_and_named(store: Store, videos: Path):
    plans = planned(store, document(videos, 5))
    assert {name: plans[name] for name in OF_CHAMPION} == dict.fromkeys(
        OF_CHAMPION, ("skipped", ABSENT)
    )
    assert plans["gate"][0] == "run"
    run = execute(store, document(videos, 5))
    assert run.status == "SUCCEEDED"
    assert statuses(run) == dict.fromkeys(OF_CHAMPION, "SKIPPED") | {"gate": "SUCCEEDED"}
    assert {run.stage(name).reason for name in OF_CHAMPION} == {ABSENT}
    assert run.public()["stages"][-1]["inputs"].keys() == {"model", "scores"}
    assert not set(OF_CHAMPION) & run.outputs.keys()
    page = Path(api.report(store, run.run_id)).read_text(encoding="utf-8")
    assert f'skipped<br><span class="soft">{ABSENT}</span>' in page


@pytest.mark.parametrize(("ports", "skipped"), [(1, True), (2, False)])
def test_stage_without_any_input_is_skipped_also_if_its_ports_are_optional(ports: int, skipped):
    sources = dict(list({"samples": "a", "clips": "b"}.items())[:ports])
    config = FeaturesConfig(networks=("pixels",))
    spec = StageSpec("x", "features", sources, config)
    assert (skip_reason(spec, {"a": "no a"}) == "no a") is skipped


def test_champion_that_was_scored_as_a_candidate_is_not_scored_again(store: Store, videos: Path):
    first = execute(store, document(videos, 9))
    with pytest.raises(GateError, match=r"champion has 0\.9"):
        execute(store, document(videos, 5), "worse")
    worse = load_run(store, "worse")
    assert statuses(worse) == dict.fromkeys(OF_CHAMPION, "CACHED") | {"gate": "GATE_BLOCKED"}
    for name in OF_CHAMPION:
        of_candidate = name.removeprefix("champion_")
        assert worse.outputs[name] == first.outputs[of_candidate]
        assert worse.stage(name).reason == f"equal to the output of {of_candidate}"
        assert planned(store, document(videos, 5))[name][0] == "cached"
    # scored on its own if its scores are those of no candidate
    other = document(videos, 5)
    other["stages"]["champion_scores"] |= {"value": 0.55}
    assert execute(store, other).stage("champion_scores").status == "SUCCEEDED"


def test_equal_run_after_its_promotion_changes_nothing(store: Store, videos: Path):
    first = execute(store, document(videos, 5))
    again = execute(store, document(videos, 5))
    assert again.outputs["scores"] == again.outputs["champion_scores"] == first.outputs["scores"]
    third = execute(store, document(videos, 5))
    assert {stage.status for stage in third.stages} == {"CACHED"}
    assert len(store.refs.history("champion")) == 1


def test_ref_that_is_set_during_the_decision_is_resolved_again(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    advance = Refs.advance

    def second(refs: Refs, *arguments, **options) -> int:
        monkeypatch.setattr(Refs, "advance", advance)
        execute(store, document(videos, 9))
        return advance(refs, *arguments, **options)

    monkeypatch.setattr(Refs, "advance", second)
    with pytest.raises(GateError, match=r"champion has 0\.9"):
        execute(store, document(videos, 5), "late")
    late = load_run(store, "late")
    assert statuses(late) == dict.fromkeys(OF_CHAMPION, "CACHED") | {"gate": "GATE_BLOCKED"}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before-commit", "decision-recorded", "ref-moved"])
def test_resumed_run_takes_the_same_decision(store: Store, videos: Path, point: str):
    """Its own promotion does not become the champion that it is compared with."""
    doc = document(videos, 5)
    execute(store, doc, until="scores")
    assert exit_code(execute_at, store.url, doc, "killed", VIDEOAR_CRASH_AT=point) == -9
    run = resume(store, "killed")
    assert statuses(run)["champion_scores"] == "SKIPPED"
    (rule,) = store.snapshot(run.outputs["gate"]).table().to_pylist()
    assert (rule["champion"], rule["reason"]) == (None, "no champion to compare with")
    (entry,) = store.refs.history("champion")
    assert entry["evidence"] == {"decision": run.outputs["gate"]}


@pytest.mark.slow
def test_resumed_run_decides_against_a_model_that_was_promoted_meanwhile(
    store: Store, videos: Path
):
    doc = document(videos, 5)
    execute(store, doc, until="scores")
    assert exit_code(execute_at, store.url, doc, "killed", VIDEOAR_CRASH_AT="committed") == -9
    better = execute(store, document(videos, 9))
    with pytest.raises(GateError, match=r"champion has 0\.9"):
        resume(store, "killed")
    assert store.refs.head("champion") == better.outputs["model"]


@pytest.mark.parametrize("url", ["snapshot://model:0123456789abcdef", "ref://nosuch"])
def test_absent_input_without_optional_is_an_error_before_the_run(
    store: Store, videos: Path, url: str
):
    with pytest.raises(SnapshotNotFoundError):
        execute(store, document(videos, 5, url))
    assert api.ls(store) == []
    run = execute(store, document(videos, 5, f"{url}?optional=true"))
    assert run.stage("champion_samples").status == "SKIPPED"


def test_ref_of_a_missing_snapshot_is_an_error_also_if_optional(store: Store, videos: Path):
    store.refs.advance("champion", "model:0123456789abcdef", expect=None, evidence={})
    with pytest.raises(SnapshotNotFoundError, match="no such snapshot"):
        execute(store, document(videos, 5))
