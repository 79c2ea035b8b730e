"""A gate whose code fails, or says nothing, blocks."""

from pathlib import Path

import pytest

from tests.support.toy_runs import execute, toy_document, write_videos
from videoar.core.errors import VideoARError
from videoar.records.run_record import load_run
from videoar.stages.promote import PromoteStage
from videoar.storage.store import open_store


def raises(*_: object) -> None:
    raise ZeroDivisionError("in the code of a gate")


def says_nothing(*_: object) -> list:
    return []


@pytest.mark.fault(27, "a gate that raises, or makes no decision")
@pytest.mark.parametrize("reduce", [raises, says_nothing])
def test_gate_that_raises_or_is_silent_promotes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduce
):
    store = open_store((tmp_path / "store").as_uri())
    document = toy_document(write_videos(tmp_path / "videos", "a.mp4"), gate=None)
    ports = {"model": "model", "scores": "scores"}
    document["stages"] |= {
        "scores": {"stage": "rate", "from": {"model": "model"}, "value": 0.9},
        "gate": {
            "stage": "promote",
            "from": ports,
            "rules": [{"metric": "rendered/colour_acc", "min": 0.1}],
        },
    }
    with monkeypatch.context() as patch:
        patch.setattr(PromoteStage, "reduce", reduce)
        with pytest.raises((VideoARError, Exception)):
            execute(store, document, "r1")
    assert load_run(store, "r1").status in {"FAILED", "GATE_BLOCKED"}
    assert store.refs.head("champion") is None
