"""Relative paths belong to the directory in which a run was created, wherever it is resumed."""

import json
from pathlib import Path

import yaml

from tests.support.toy_runs import toy_document, write_videos
from tests.support.toys import REGISTRY
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import load_pipeline
from videoar.records.run_record import load_run
from videoar.runner.execute import Execution, resume_spec
from videoar.storage.store import open_store


def test_run_resumed_from_another_directory_reads_the_same_data(tmp_path: Path, monkeypatch):
    for name, video in (("here", "a.mp4"), ("there", "other.mp4")):
        (tmp_path / name).mkdir()
        write_videos(tmp_path / name / "my vids #2", video)
    pipeline = tmp_path / "toy.yaml"
    pipeline.write_text(yaml.safe_dump(toy_document(Path("elsewhere"))))
    store = open_store((tmp_path / "store").as_uri())
    monkeypatch.chdir(tmp_path / "here")
    spec = load_pipeline(pipeline, ["inputs.videos=my vids #2"], REGISTRY)
    first = Execution(spec, store, InlineEngine(), run_id="run1", registry=REGISTRY).run(
        until="big"
    )

    monkeypatch.chdir(tmp_path / "there")
    resumed = resume_spec("run1", store, REGISTRY)
    run = Execution(resumed, store, InlineEngine(), run_id="run1", registry=REGISTRY).run()

    assert run.outputs["big"] == first.outputs["big"]
    document = load_run(store, "run1").document
    assert document["inputs"] == {"videos": str(tmp_path / "here" / "my vids #2")}
    assert "there" not in json.dumps(document)
