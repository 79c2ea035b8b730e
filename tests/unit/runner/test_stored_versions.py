"""Stores of other versions: run records with unknown fields, and a newer store format."""

import json
import sys

import pytest

from tests.support.toys import REGISTRY
from videoar.cli import main
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.records.run_record import load_run
from videoar.runner.execute import Execution
from videoar.storage.layout import FORMAT_KEY, RUNS_PREFIX, STAGES_PREFIX, is_record
from videoar.storage.ledger import seal
from videoar.storage.store import open_store


@pytest.fixture
def url(tmp_path):
    return (tmp_path / "store").as_uri()


def document(folder):
    if not folder.exists():  # a rewritten file is a changed source
        folder.mkdir()
        (folder / "a.mp4").write_bytes(b"x" * 10)
    stages = {
        "big": {"stage": "upper", "from": {"sources": "videos"}},
        "model": {"stage": "count", "from": {"sources": "big"}},
    }
    return {"pipeline": "toy", "inputs": {"videos": str(folder)}, "stages": stages}


def execute(store, folder):
    spec = parse_pipeline(document(folder), "toy.yaml", REGISTRY)
    return Execution(spec, store, InlineEngine(), registry=REGISTRY).run()


def add_field(value):
    """Add an unknown field to every mapping of a record, but not to the user's document."""
    if isinstance(value, dict):
        kept = ("document", "parts", "metrics", "inputs", "parents")
        return {k: v if k in kept else add_field(v) for k, v in value.items()} | {"later": 1}
    return [add_field(item) for item in value] if isinstance(value, list) else value


def test_run_and_work_records_with_unknown_fields_are_read(url, tmp_path):
    store = open_store(url)
    first = execute(store, tmp_path / "videos")
    for prefix in (RUNS_PREFIX, STAGES_PREFIX):
        for key in filter(is_record, list(store.ledger.list(prefix))):
            record = add_field(store.ledger.read(key))
            store.objects.put(key, json.dumps(seal(key, record)).encode())
    assert load_run(store, first.run_id).stages == first.stages
    second = execute(store, tmp_path / "videos")
    assert {stage.status for stage in second.stages} == {"CACHED"}


@pytest.mark.parametrize("verb", [["ls"], ["show", "champion"], ["lineage", "champion"]])
def test_newer_store_format_is_one_line_and_exit_code_7(url, verb, monkeypatch, capsys):
    open_store(url).objects.put(FORMAT_KEY, b'{"format_version": 99}')
    monkeypatch.setattr(sys, "argv", ["videoar", "--store", url, *verb])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(
        "format.json: store format 99 is newer than 2, the newest this code reads (upgrade videoar)"
    )
