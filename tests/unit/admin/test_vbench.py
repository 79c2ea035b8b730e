"""The verbs of VBench."""

import json
import zipfile

import pytest
from typer.testing import CliRunner

from tests.support.committed_rows import RowWriter
from tests.support.vbench_runs import commit_samples, interpreter, sample_rows, weights
from videoar.cli.app import app
from videoar.core.errors import ConfigError, ContractError
from videoar.core.settings import settings
from videoar.evaluation.scorecard import not_evaluated, score_row
from videoar.evaluation.vbench_constants import DIMENSIONS


def call(store, *arguments):
    done = CliRunner().invoke(app, ["--store", store.url, "--json", "vbench", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def test_plan_writes_a_snapshot_once(store):
    _, result = call(store, "plan", "--flickering", "25")
    assert (result["entries"], result["prompts"], result["samples"]) == (946, 944, 6220)
    assert call(store, "plan", "--flickering", "25")[1] == result
    snapshot = store.snapshot(result["snapshot"])
    assert (snapshot.contract, snapshot.rows) == ("prompts@1", 6220)
    assert call(store, "plan", "--seed", "1")[1]["snapshot"] != result["snapshot"]


def test_plan_with_unusable_rewritten_prompts_names_the_file(store, tmp_path):
    (tmp_path / "short.txt").write_text("one")
    with pytest.raises(ConfigError, match="946 are needed"):
        call(store, "plan", "--rewritten", str(tmp_path / "short.txt"))


def test_check_names_every_missing_video_file_and_licence(store, tmp_path, monkeypatch):
    folder = weights(tmp_path, monkeypatch)
    monkeypatch.setenv("VIDEOAR_VBENCH_PYTHON", str(interpreter(tmp_path)))
    monkeypatch.setenv("VIDEOAR_VBENCH_CACHE", str(folder))
    settings.cache_clear()
    rows = sample_rows(store)
    commit_samples(store, rows)
    code, result = call(store, "check", "samples")
    assert (code, result["ok"], result["missing"]) == (0, True, [])
    assert {"name": "interpreter", "ok": True, "detail": "vbench 0.1.5"} in result["checks"]

    (folder / "amt_model/amt-s.pth").unlink()
    commit_samples(store, rows[2:], "fewer")
    code, result = call(store, "check", "fewer")
    assert code == 3
    assert result["missing"] == [f"{row['prompt']}-{row['index']}.mp4" for row in rows[:2]]
    failed = {check["name"]: check["detail"] for check in result["checks"] if not check["ok"]}
    assert failed.keys() == {"samples", "amt_model/amt-s.pth"}
    assert failed["samples"] == "2 of 4720 videos are missing"
    settings.cache_clear()


def test_check_warns_of_licences(store):
    commit_samples(store, sample_rows(store))
    warnings = " ".join(call(store, "check", "samples")[1]["warnings"])
    assert "AMT is CC BY-NC 4.0: no commercial use of motion_smoothness" in warnings
    assert "pyiqa is PolyForm-Noncommercial: no commercial use of imaging_quality" in warnings


@pytest.mark.slow
def test_invariant_6_export_writes_every_official_name(store, tmp_path):
    rows = sample_rows(store)
    commit_samples(store, rows)
    _, result = call(store, "export", "samples", "--to", str(tmp_path / "out"))
    assert result["files"] == 4720
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{row['prompt']}-{row['index']}.mp4" for row in rows}
    assert (tmp_path / "out" / "A fantasy landscape-0.mp4").read_bytes() == b"video"
    with pytest.raises(ConfigError, match="is not empty"):
        call(store, "export", "samples", "--to", str(tmp_path / "out"))


@pytest.mark.slow
def test_invariant_6_export_to_a_file_system_that_ignores_case_is_refused(
    store, tmp_path, monkeypatch
):
    commit_samples(store, sample_rows(store))
    link = type(tmp_path).symlink_to
    monkeypatch.setattr(
        type(tmp_path),
        "symlink_to",
        lambda path, target: link(path.with_name(path.name.lower()), target),
    )
    with pytest.raises(ConfigError, match=r"fantasy landscape-0\.mp4: exists already"):
        call(store, "export", "samples", "--to", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_export_damaged_video_is_named_and_leaves_nothing(store, tmp_path):
    rows = sample_rows(store)
    commit_samples(store, [{**rows[0], "video_sha256": "0" * 64}, *rows[1:]])
    with pytest.raises(ContractError, match="1 videos are damaged"):
        call(store, "export", "samples", "--to", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def scores(store, absent=()):
    rows = []
    for name in DIMENSIONS:
        key = store.put_object(json.dumps({name: [0.5, []]}).encode(), ".json").key
        metric, details = f"vbench/{name}", {"result_key": key}
        made = score_row(metric, 0.5, lock={}, num_samples=5, details=details)
        rows.append(not_evaluated(metric, "no", lock={}) if name in absent else made)
    RowWriter(store).commit("scores", "scores@1", rows)


def test_export_of_scores_is_the_archive_of_all_result_files(store, tmp_path):
    scores(store)
    call(store, "export", "scores", "--to", str(tmp_path / "out"))
    with zipfile.ZipFile(tmp_path / "out/vbench_results.zip") as archive:
        assert archive.namelist() == [f"{name}_eval_results.json" for name in DIMENSIONS]
        assert json.loads(archive.read("scene_eval_results.json")) == {"scene": [0.5, []]}


def test_export_of_incomplete_scores_is_refused(store, tmp_path):
    scores(store, absent=("scene",))
    with pytest.raises(ContractError, match="has not evaluated: scene"):
        call(store, "export", "scores", "--to", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
