"""`resume`: what has succeeded stays as it is, and code and files must be those of the start."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.small_pipeline import environment, in_this_process
from tests.support.toy_runs import execute, toy_document, write_videos
from tests.support.toys import REGISTRY, Upper
from videoar import api
from videoar.core import software
from videoar.core.errors import ConfigError
from videoar.pipeline.registry import BUILTIN
from videoar.records.run_record import load_run
from videoar.storage.store import Store


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, stage in REGISTRY.items():
        monkeypatch.setitem(BUILTIN, name, stage)
    # a page and a mirror are not what is tested
    monkeypatch.setattr("videoar.api.runs._publish_results", lambda _: None)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "a.mp4")


def interrupted(store: Store, videos: Path, monkeypatch, point: str = "counting-3") -> None:
    """Leave a run `r1` that was interrupted at a point of a stage."""

    def interrupt(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tests.support.toys.crash_point", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(store, toy_document(videos), "r1")


def test_resume_of_a_run_that_succeeded_changes_nothing(store, videos, tmp_path):
    run = execute(store, toy_document(videos), "r1")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_videos(videos, "new.mp4")
    arguments = ["--store", store.url, "--target", "inline", "resume", "r1", "--json"]
    code, out, err = in_this_process(arguments, environment())
    assert (code, json.loads(out)["outputs"]) == (0, run.outputs)
    assert "r1 has already succeeded" in err
    (videos / "new.mp4").unlink()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_resume_from_a_stage_needs_those_before_it(store, videos, monkeypatch):
    interrupted(store, videos, monkeypatch, "picking")
    with pytest.raises(ConfigError, match=r"stages.few: has no finished snapshot"):
        api.resume(store, "r1", target="inline", start="model")
    run = api.resume(store, "r1", target="inline", start="few")
    assert run.status == "SUCCEEDED"
    assert run.stage("big").status == "CACHED"


@pytest.mark.fault(31, "changed code and files of options")
@pytest.mark.parametrize("changed", ["tools", "code", "config"])
def test_resume_with_other_code_or_files_is_refused_unless_accepted(
    store, videos, monkeypatch, changed
):
    interrupted(store, videos, monkeypatch)
    if changed == "tools":
        component = "stages.big.tools.prompts"
        monkeypatch.setattr(Upper, "tools", lambda _: {"prompts": "a digest"})
    elif changed == "code":
        component = "code.videoar.media.decode"
        closure = {"videoar.media.decode": "a digest"}
        monkeypatch.setattr("videoar.runner.drift.code_closure", lambda _: closure)
    else:  # the content of a policy that the options name is part of them
        component = "stages.big.config"
        content = property(lambda _: lambda: {"policy": "other bounds"})
        monkeypatch.setattr("tests.support.toys.UpperConfig.semantic", content)
    before = load_run(store, "r1")
    arguments = ["--store", store.url, "--target", "inline", "resume", "r1"]
    code, _, err = in_this_process(arguments, environment())
    assert code == 2
    assert f"run r1: changed since it started: {component}" in err.splitlines()[-1]
    assert load_run(store, "r1") == before
    code, out, err = in_this_process([*arguments, "--accept-drift", "--json"], environment())
    assert code == 0, err
    assert json.loads(out)["accepted_drift"] == [component]


def test_run_has_who_made_it_with_which_software(store, videos, monkeypatch, tmp_path):
    run = execute(store, toy_document(videos), "r1")
    assert run.software is not None
    assert "@" in run.software.user
    assert len(run.software.packages) == 64
    git = ["git", "-C", str(Path(software.__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert head.stdout.startswith(run.software.commit.rpartition("-g")[2])
    # installed into a folder of another project's checkout
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(software, "_PACKAGE", tmp_path)
    software.commit_id.cache_clear()
    try:
        assert software.commit_id() == ""
    finally:
        software.commit_id.cache_clear()
