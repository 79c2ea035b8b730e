"""Promotions of a ref: a decision holds against the model that it was made against, and no other.

Runs of toy models with given scores and the real stage `promote`.
"""

import threading
from pathlib import Path

import pytest

from tests.support.child_process import exit_code, preload
from tests.support.toy_runs import execute, execute_at, resume, toy_document, write_videos
from tests.support.toys import RATED
from videoar import api
from videoar.core.errors import GateError, RefMovedError
from videoar.records.run import Run
from videoar.records.run_record import load_run
from videoar.storage.ledger import Refs
from videoar.storage.store import Store, open_store

preload(__name__)
NO_LOSS = [{"metric": RATED, "max_regression": 0.1}]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "a.mp4")


def gated(
    videos: Path, steps: int, value: float, rules: list | None = None, gate: str = "gate"
) -> dict:
    """Return a pipeline: a model of its own for each number of steps, its score, and a gate."""
    document = toy_document(videos, model={"steps": steps}, gate=None)
    ports = {"model": "model", "scores": "scores"}
    document["stages"] |= {
        "scores": {"stage": "rate", "from": {"model": "model"}, "value": value},
        gate: {"stage": "promote", "from": ports, "rules": rules or NO_LOSS},
    }
    return document


def promote_at(store_url: str, model: str) -> None:
    """Promote by hand, in a child process."""
    api.promote(open_store(store_url), model)


class Killed(BaseException):
    """Stands for SIGKILL where the test goes on in the same process."""


@pytest.fixture
def killed_before_the_move(store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a pipeline up to the point between its decision and the move."""

    def run(document: dict, run_id: str) -> None:
        def die(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Refs, "advance", die)
            with pytest.raises(Killed):
                execute(store, document, run_id)

    return run


def champion(store: Store) -> str | None:
    return store.refs.head("champion")


def model_of(run: Run) -> str:
    return run.outputs["model"]


def test_decision_resumed_after_another_promotion_is_taken_again(
    store: Store, videos: Path, killed_before_the_move
):
    killed_before_the_move(gated(videos, steps=2, value=0.5), "run-a")
    better = execute(store, gated(videos, steps=4, value=0.9))
    assert champion(store) == model_of(better)
    with pytest.raises(GateError, match=r"champion has 0\.9"):
        resume(store, "run-a")
    assert champion(store) == model_of(better)
    assert load_run(store, "run-a").status == "GATE_BLOCKED"


def test_decision_on_fewer_than_16_samples_is_blocked_with_that_reason(store: Store, videos: Path):
    document = gated(videos, 2, 0.5)
    document["stages"]["scores"]["num_samples"] = 15
    with pytest.raises(GateError, match="of 15 clips; a decision needs 16 on each side") as error:
        execute(store, document, "few")
    assert error.value.exit_code == 4
    assert load_run(store, "few").status == "GATE_BLOCKED"
    assert champion(store) is None


def test_promote_newest_decision_of_a_resumed_older_run_holds(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:  # run A stops before its gate
        patch.setattr("videoar.stages.promote.PromoteStage.reduce", lambda *_: 1 / 0)
        with pytest.raises(Exception, match="division"):
            execute(store, gated(videos, 2, 0.5, [{"metric": RATED, "min": 0.8}]), "0a")
    passed = execute(store, gated(videos, 2, 0.5, [{"metric": RATED, "min": 0.2}]), "0b")
    execute(store, gated(videos, 4, 0.9))
    with pytest.raises(GateError):
        resume(store, "0a")
    with pytest.raises(GateError, match=r"blocked by its gate.*>= 0\.8"):
        api.promote(store, model_of(passed))


def test_promote_newest_decision_of_two_gates_of_one_run_holds(store: Store, videos: Path):
    document = gated(videos, 2, 0.5, [{"metric": RATED, "min": 0.2}], gate="agate")
    strict = {"rules": [{"metric": RATED, "min": 0.8}]}
    document["stages"]["zgate"] = document["stages"]["agate"] | strict
    with pytest.raises(GateError):
        execute(store, document)
    run = api.ls(store)[0]
    assert not api.gate(store, run.run_id)["passed"]
    execute(store, gated(videos, 4, 0.9))
    with pytest.raises(GateError, match=r"blocked by its gate.*>= 0\.8"):
        api.promote(store, model_of(run))


@pytest.mark.fault(19, "three runs with one candidate")
@pytest.mark.slow
@pytest.mark.parametrize("wait", [False, True], ids=["other runtime options", "equal"])
def test_runs_with_equal_candidates_at_the_gate_all_succeed(store: Store, videos: Path, wait: bool):
    for steps in range(1, 2 if wait else 6):
        barrier = threading.Barrier(3)
        results: list[str] = []

        def run(i: int, steps=steps, barrier=barrier, results=results) -> None:
            document = gated(videos, steps, 0.5)
            if not wait:
                document["stages"]["big"]["timeout_s"] = 100 + i
            barrier.wait()
            results.append(execute(store, document, f"r{steps}{i}", wait=wait).status)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == ["SUCCEEDED"] * 3
    assert len(store.refs.history("champion")) == steps


def test_loser_of_a_race_with_the_same_decision_succeeds(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    document, advance = gated(videos, 2, 0.5), Refs.advance

    def second(refs: Refs, *arguments, **options) -> int:
        advance(refs, *arguments, **{**options, "by_run": "the-winner"})
        return advance(refs, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Refs, "advance", second)
        run = execute(store, document)
    assert run.status == "SUCCEEDED"
    (entry,) = store.refs.history("champion")
    assert (entry["snapshot"], entry["by_run"]) == (model_of(run), "the-winner")


def test_ref_that_moves_during_a_decision_is_decided_on_again(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    """The better model is promoted after the decision of the worse one, before its move."""
    execute(store, gated(videos, 4, 0.5))
    better = execute(store, gated(videos, 6, 0.9), until="scores")
    advance = Refs.advance

    def second(refs: Refs, *arguments, **options) -> int:
        monkeypatch.setattr(Refs, "advance", advance)
        execute(store, gated(videos, 6, 0.9))
        return advance(refs, *arguments, **options)

    monkeypatch.setattr(Refs, "advance", second)
    with pytest.raises(GateError, match=r"champion has 0\.9"):
        execute(store, gated(videos, 2, 0.55), "loser")
    assert champion(store) == model_of(better)
    run = load_run(store, "loser")
    assert (run.status, run.stage("scores").status) == ("GATE_BLOCKED", "SUCCEEDED")
    decision = store.snapshot(run.outputs["gate"]).table().to_pylist()[0]
    assert (decision["champion"], decision["champion_seq"]) == (model_of(better), 1)


def test_ref_that_moves_during_every_decision_blocks_the_run(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    attempts = []

    def always(refs: Refs, name: str, *_: object, **__: object) -> int:
        attempts.append(name)
        raise RefMovedError(name, "moved to x in the meantime")

    monkeypatch.setattr(Refs, "advance", always)
    with pytest.raises(GateError, match="champion: moved during each of 5 decisions"):
        execute(store, gated(videos, 2, 0.5), "unlucky")
    assert len(attempts) == 5
    assert load_run(store, "unlucky").status == "GATE_BLOCKED"


def test_equal_run_after_a_promotion_or_a_rollback_is_cached_and_moves_nothing(
    store: Store, videos: Path
):
    first = execute(store, gated(videos, 2, 0.5))
    second = execute(store, gated(videos, 4, 0.55))
    for _ in range(2):
        for document, run in ((gated(videos, 2, 0.5), first), (gated(videos, 4, 0.55), second)):
            again = execute(store, document)
            assert again.outputs == run.outputs
            assert {stage.status for stage in again.stages} == {"CACHED"}
        if champion(store) == model_of(second):
            api.rollback(store, "champion")
    targets = [entry["snapshot"] for entry in store.refs.history("champion")]
    assert targets == [model_of(first), model_of(second), model_of(first)]
    # by hand it comes back, against the model of now
    result = api.promote(store, model_of(second))
    assert champion(store) == model_of(second)
    (rule,) = store.snapshot(result["decision"]).table().to_pylist()
    assert (rule["champion"], rule["champion_seq"]) == (model_of(first), 2)


POINTS = [
    "reduce-written", "before-commit", "commit.before_log", "commit.after_log",
    "commit.between_records", "committed", "decision-recorded", "ref-moved",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_run_killed_around_its_decision_promotes_once_and_only_against_the_head(
    store: Store, videos: Path, point: str
):
    document, better = gated(videos, 2, 0.5), gated(videos, 4, 0.9)
    model = model_of(execute(store, document, until="scores"))
    execute(store, better, until="scores")
    code = exit_code(execute_at, store.url, document, "killed", VIDEOAR_CRASH_AT=point)
    assert code == -9
    moved = point == "ref-moved"
    assert champion(store) == (model if moved else None)
    winner = model_of(execute(store, better))
    if moved:
        assert resume(store, "killed").status == "SUCCEEDED"
    else:
        with pytest.raises(GateError, match=r"champion has 0\.9"):
            resume(store, "killed")
    targets = [entry["snapshot"] for entry in store.refs.history("champion")]
    assert targets == ([model, winner] if moved else [winner])


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_run_killed_around_its_decision_is_resumed_to_one_promotion(
    store: Store, videos: Path, point: str
):
    document = gated(videos, 2, 0.5)
    execute(store, document, until="scores")
    assert exit_code(execute_at, store.url, document, "killed", VIDEOAR_CRASH_AT=point) == -9
    run = resume(store, "killed")
    (entry,) = store.refs.history("champion")
    assert entry["snapshot"] == model_of(run)
    assert entry["evidence"] == {"decision": run.outputs["gate"]}


def test_promote_evaluates_the_rules_against_the_model_of_now(store: Store, videos: Path):
    early = execute(store, gated(videos, 2, 0.5))
    execute(store, gated(videos, 4, 0.55))
    good = execute(store, gated(videos, 6, 0.9))
    with pytest.raises(GateError, match=r"regression <= 0\.1: champion has 0\.9"):
        api.promote(store, model_of(early))
    assert champion(store) == model_of(good)
    # the evaluation is the newest decision now
    with pytest.raises(GateError, match=r"champion has 0\.9"):
        api.promote(store, model_of(early))


@pytest.mark.slow
@pytest.mark.parametrize("point", ["commit.before_log", "commit.after_log", "ref-moved"])
def test_promote_killed_ends_the_same_when_it_is_repeated(store: Store, videos: Path, point: str):
    first = execute(store, gated(videos, 2, 0.5))
    second = execute(store, gated(videos, 4, 0.55))
    code = exit_code(promote_at, store.url, model_of(first), VIDEOAR_CRASH_AT=point)
    assert code == -9
    assert api.promote(store, model_of(first))["snapshot"] == champion(store) == model_of(first)
    targets = [entry["snapshot"] for entry in store.refs.history("champion")]
    assert targets == [model_of(first), model_of(second), model_of(first)]


@pytest.mark.slow
def test_promote_decision_that_was_not_recorded_counts_as_newest(store: Store, videos: Path):
    strict = gated(videos, 2, 0.5, [{"metric": RATED, "min": 0.8}], gate="strict")
    execute(store, strict, until="scores")
    code = exit_code(execute_at, store.url, strict, "killed", VIDEOAR_CRASH_AT="committed")
    assert code == -9
    passed = execute(store, gated(videos, 2, 0.5, [{"metric": RATED, "min": 0.2}]))
    execute(store, gated(videos, 4, 0.9))
    with pytest.raises(GateError, match=r"blocked by its gate.*>= 0\.8"):
        api.promote(store, model_of(passed))
    # a later decision of the same gate replaces it
    lenient = gated(videos, 2, 0.5, [{"metric": RATED, "min": 0.3}], gate="strict")
    execute(store, lenient)
    assert api.promote(store, model_of(passed))["snapshot"] == champion(store)
