"""The command line's own part: options, names of verbs, what goes where, and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from tests.support.small_pipeline import ROOT, environment, in_this_process
from tests.support.toy_runs import toy_document, toy_run, write_videos
from tests.support.toys import REGISTRY
from videoar import api
from videoar.cli import data
from videoar.cli.app import app
from videoar.cli.runs import run_blocks
from videoar.core.errors import ConfigError
from videoar.pipeline.registry import BUILTIN
from videoar.records.run import Run, StageRun

RUN = SimpleNamespace(
    run_id="r", pipeline="p", status="SUCCEEDED", seconds=1.0, inputs={}, stages=[],
    public=lambda: {"run_id": "r"},
)  # fmt: skip
VERBS = (
    "run", "resume", "plan", "status", "ls", "logs", "cancel", "explain", "show", "diff", "lineage",
    "validate", "stages", "schema", "export", "quarantine", "generate", "serve", "evaluate",
    "report", "compare", "gate", "promote", "rollback", "freeze", "refs", "vbench", "backfill",
    "schedule", "forget", "doctor", "bench", "gc", "store",
)  # fmt: skip
NEEDS_ARGUMENTS = set(VERBS) - {
    "status", "ls", "stages", "quarantine", "report", "gate", "refs", "vbench", "schedule",
    "gc", "doctor", "store",
}  # fmt: skip
VBENCH = ("vbench plan", "vbench check", "vbench export", "vbench setup")
SCHEDULE = tuple(f"schedule {v}" for v in ("ls", "tick", "serve", "pause", "resume", "release"))
GC = ("gc plan", "gc apply")
OTHERS = ("store copy", "store verify", "quarantine retry", "quarantine accept")
TAKES_A_NAME = (
    "show", "lineage", "refs", "status", "logs", "cancel", "validate", "gc apply", "rollback",
    "schedule pause", "quarantine ls", "plan",
)  # fmt: skip
OPENS_NO_STORE = (
    "schema", "stages", "bench", "quarantine", "vbench", "vbench setup", "schedule", "gc", "store",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def store(folder: Path) -> str:
    return (folder / "store").as_uri()


@pytest.fixture(scope="module")
def runs(store: str, folder: Path) -> list[Run]:
    """Two runs; the second one has another video, and its gate has another model."""
    videos = write_videos(folder / "videos", "a.mp4", "h\xe4mmer.mp4", "bad\x1b[31m\n.mp4")
    opened = api.open_store(store)
    first = toy_run(opened, videos)
    write_videos(videos, "c.mp4")
    return [first, toy_run(opened, videos, model={"steps": 4})]


def call(*arguments: str, **extra: str) -> tuple[int, str, str]:
    return in_this_process(["--store", *arguments], environment(**extra))


def fail(*arguments: str) -> tuple[int, dict, str]:
    """Call with --json and return the exit code, the error of the document, and stderr."""
    code, out, err = call(*arguments, "--json")
    return code, json.loads(out)["error"], err


@pytest.mark.parametrize("verb", ["run", "resume"])
def test_run_output_of_libraries_goes_to_stderr(verb, tmp_path, monkeypatch):
    def works(*_: object, **__: object) -> SimpleNamespace:
        print("(raylet) A worker died or was killed")
        return RUN

    monkeypatch.setattr(f"videoar.api.{verb}", works)
    done = CliRunner().invoke(app, ["--store", tmp_path.as_uri(), "--json", verb, "p"])
    assert json.loads(done.stdout) == {"run_id": "r", "report": None}
    assert "(raylet) A worker died" in done.stderr


@pytest.mark.parametrize("verb", ["", *VERBS, "quarantine ls", *VBENCH, *SCHEDULE, *GC, *OTHERS])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_every_verb_has_global_options_and_an_example(verb, flag):
    done = CliRunner().invoke(app, [*verb.split(), flag])
    assert done.exit_code == 0
    assert "--store" in done.stdout
    assert "--json" in done.stdout
    if verb not in ("", "quarantine", "vbench", "schedule", "gc", "store"):
        assert f"Example: videoar {verb}" in done.stdout


def test_help_root_lists_all_verbs_untruncated():
    listed = CliRunner().invoke(app, ["-h"]).stdout
    assert re.findall(r"^  (\w+)  +[A-Z]", listed, re.MULTILINE) == list(VERBS)
    assert "..." not in listed.partition("Runs:")[2]


@pytest.mark.parametrize("arguments", [[], ["quarantine"], ["vbench"], ["schedule"], ["--json"]])
def test_bare_command_prints_help_and_exits_0(arguments):
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout.startswith("Usage: ")) == (0, True)


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--version"], ["show", "--version"]])
def test_version_before_and_after_verb_is_printed(arguments):
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, "videoar 0.1.0\n")


@pytest.mark.parametrize("verb", [*VERBS, "quarantine ls", *VBENCH, *SCHEDULE, *GC, *OTHERS])
def test_global_options_before_and_after_verb_are_equivalent(verb, tmp_path):
    given = ["--store", "nonsense", "--target", "inline", "--json", "-v"]
    arguments = {"validate": ["x"], "export": ["x", "--format", "parquet", "--to", "y"]}
    arguments |= {"forget": ["--source", "0" * 64], "explain": ["x", "y"], "diff": ["x", "y"]}
    arguments |= {"generate": ["--model", "x", "--prompt", "a", "--out", "y"]}
    arguments |= {"serve": ["--model", "x"], "freeze": ["x", "--as", "y"], "compare": ["x", "y"]}
    arguments |= {"evaluate": ["--samples", "x", "--reference", "y", "--metrics", "rendered"]}
    arguments |= {"backfill": ["x", "--from", "2026-11-01", "--to", "2026-11-02"]}
    arguments |= {f"schedule {v}": ["x"] for v in ("tick", "serve", "pause", "resume", "release")}
    arguments |= {f"store {v}": ["x"] for v in ("copy", "verify")}
    arguments |= {"quarantine accept": ["x", "--why", "y"]}
    arguments |= {"gc apply": ["x"], "vbench check": ["x"], "vbench export": ["x", "--to", "y"]}
    needed = arguments.get(verb, ["x"] if verb in NEEDS_ARGUMENTS else [])
    needed = ["--help"] if verb in OPENS_NO_STORE else needed
    before = CliRunner().invoke(app, [*given, *verb.split(), *needed])
    after = CliRunner().invoke(app, [*verb.split(), *needed, *given])
    assert (before.exit_code, before.stdout) == (after.exit_code, after.stdout)
    if needed != ["--help"]:
        assert str(before.exception).startswith("nonsense: not a store URL")
        assert str(after.exception) == str(before.exception)


@pytest.mark.usefixtures("runs")
def test_global_option_given_twice_last_one_holds(store):
    code, out, _ = call("file:///nosuch", "ls", "--store", store, "--json")
    assert (code, len(json.loads(out)["runs"])) == (0, 2)


@pytest.mark.parametrize("verb", sorted(NEEDS_ARGUMENTS))
def test_missing_argument_prints_usage_and_example(verb, store):
    code, error, err = fail(store, verb)
    assert code == error["exit_code"] == 2
    assert error["usage"].startswith(f"videoar {verb} ")
    assert error["example"].startswith(f"videoar {verb} ")
    lines = err.splitlines()
    assert lines[0].startswith(f"error: videoar {verb}: missing ")
    assert [line.partition(" ")[0] for line in lines[1:]] == ["usage:", "example:"]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "code", "kind", "words"),
    [
        (["frobnicate"], 2, "UsageError", "frobnicate"),
        (["shwo", "x"], 2, "UsageError", "Did you mean 'show'?"),
        (["ls", "--wrong"], 2, "UsageError", "--wrong"),
        (["ls", "--limit", "x"], 2, "UsageError", "--limit"),
        (["show", "modle"], 2, "SnapshotNotFoundError", "did you mean model?"),
        (["show", "../../../usr"], 2, "SnapshotNotFoundError", "no such name"),
        (["status", "zzz"], 2, "ConfigError", "no such run"),
        (["stages", "ingst"], 2, "ConfigError", "did you mean ingest?"),
        (["schema", "clip@1"], 2, "ConfigError", "did you mean clips@1?"),
        (["rollback", "nosuch"], 2, "ConfigError", "known: champion"),
        (["promote", "few"], 4, "GateError", "no gate has evaluated it"),
        (["freeze", "few", "--as", "champion"], 2, "ConfigError", "points at model:"),
        (["refs", "champoin"], 2, "ConfigError", "did you mean champion?"),
        (["run", "absent.yaml"], 2, "ConfigError", "absent.yaml"),
        (["report", "--out", "/nosuch/folder/x.html"], 2, "ConfigError", "/nosuch/folder/x.html"),
        (["lineage", "model", "--up", "--down"], 2, "ConfigError", "exclude each other"),
        (["forget", "--source", "abc"], 2, "ConfigError", "is not a SHA-256"),
        *(([*verb.split(), "x" * 5000], 2, "", "xxx") for verb in TAKES_A_NAME),
        (["generate", "--prompt", "x", "--out", "/proc/x", "--model", "x" * 300], 2, "OSError", ""),
        (["show", "few", "--rows", str(2**64)], 2, "UsageError", "no finite number"),
        (["gc", "plan", "--days", "inf"], 2, "UsageError", "no finite number"),
        (["gc", "plan", "--unfinished-days", "1e308"], 2, "UsageError", "no finite number"),
        (["export", "few", "--format", "parquet", "--to", "/x", "--shard-mib", "inf"], 2,
         "UsageError", "--shard-mib"),
        (["resume", "last", "--from", "nosuch"], 2, "ConfigError", "has no such stage"),
        (["schedule", "pause", "nosuch"], 2, "ConfigError", "there is none yet"),
    ],
)  # fmt: skip
def test_error_with_json_is_a_document_with_the_same_exit_code(store, arguments, code, kind, words):
    got, error, err = fail(store, *arguments)
    assert (got, error["exit_code"], kind or error["type"]) == (code, code, error["type"])
    assert error.keys() >= {"where", "what", "hint"}
    assert words in " ".join((error["where"], error["what"], error["hint"]))
    assert err.startswith("error: ")
    without, out, text = call(store, *arguments)
    assert (without, out, text) == (code, "", err)


def test_spec_error_with_json_lists_all_mistakes(store, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(
        "pipeline: p\ninputs: {videos: /v}\nstages:\n"
        "  clips: {stage: ingest, from: {sources: videos}, sise_px: 1}\n"
        "  good: {stage: filtre, from: {clips: clips}}\n"
    )
    code, error, err = fail(store, "plan", str(path))
    assert code == 2
    paths = [mistake["path"] for mistake in error["mistakes"]]
    assert paths == ["stages.clips.sise_px", "stages.good.stage"]
    assert len(err.splitlines()) == 2


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "/a/b"),
        UnicodeEncodeError("ascii", "\udcff", 0, 1, "no"),
        MemoryError("12 GB"),
        RecursionError("too deep"),
        ValueError("two\nlines \x1b[31m"),
        BlockingIOError(11, "try again"),
    ],
)
def test_unexpected_error_is_one_line_without_traceback(store, monkeypatch, error):
    def raises(*_: object) -> None:
        raise error

    monkeypatch.setattr("videoar.api.ls", raises)
    code, out, err = call(store, "ls", "--json")
    assert (code, len(err.splitlines()), "Traceback" in err) == (1, 1, False)
    assert "\x1b" not in err
    assert json.loads(out)["error"]["type"] == type(error).__name__
    assert "Traceback" in call(store, "-v", "ls")[2]
    if getattr(error, "filename", None):
        assert err.startswith("error: /a/b: No such file")


@pytest.mark.usefixtures("runs")
def test_gate_json_has_keys_of_contract(store):
    code, out, _ = call(store, "gate", "--json")
    decision = json.loads(out)
    assert (code, decision["passed"]) == (0, True)
    assert decision["rules"][0].keys() >= {"name", "value", "bound", "passed"}


def test_tables_contain_ids_and_values(store, runs):
    first, second = (run.outputs["big"] for run in runs)
    for arguments, words in [
        (["status"], ["stage", "SUCCEEDED", runs[1].outputs["model"], "report"]),
        (["gate"], ["pass", "rows >= 1.0", "bound", "for champion: passed"]),
        (["diff", first, second], [first, second, "added:", "c.mp4", "videos"]),
        (["lineage", "champion"], [runs[1].outputs["model"], second, "parents"]),
        (["lineage", "videos", "--down"], ["children"]),
        (["show", "big"], ["contract", "sources@1", "size_bytes", "row 1", "A.MP4"]),
        (["ls", "--limit", "1"], [runs[1].run_id, "more than 1 runs"]),
        (["logs", "last/big"], ["SUCCEEDED"]),
        (["explain", "last", "model"], ["steps", "6", "4"]),
    ]:
        code, out, err = call(store, *arguments)
        assert code == 0, err
        assert [word for word in words if word not in out] == [], out
        assert "{" not in out.replace("{}", "")
        assert all(line == line.rstrip() for line in out.splitlines())


def test_ls_limit_lists_newest_runs_first(store, runs):
    for limit, expected in [("1", 1), ("2", 2), ("0", 2)]:
        _, out, _ = call(store, "ls", "--limit", limit, "--json")
        ids = [run["run_id"] for run in json.loads(out)["runs"]]
        assert ids == [run.run_id for run in runs[::-1]][:expected]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("arguments", [["quarantine", "ls"], ["show", "bad\x1b[31m\n.mp4"]])
def test_file_name_with_control_characters_is_escaped(store, arguments):
    _, out, _ = call(store, *arguments)
    assert "\x1b" not in out
    assert r"bad\x1b[31m\n.mp4" in out


def test_rejected_clip_is_shown_with_file_and_time(capsys):
    row = {
        "stage": "filter",
        "reasons": ["DARK"],
        "item_id": "0a1b",
        "kind": "clip",
        "detail": None,
    }
    row |= {"uri": "file:///a/b%20c.mp4", "span_start_us": 1_500_000, "span_end_us": 2_000_000}
    data._emit_rejects({"rows": [row, row | {"span_start_us": None}]})
    shown = capsys.readouterr().out
    assert "b c.mp4, 1.50 to 2.00 s" in shown
    assert shown.count("b c.mp4") == 2


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_pipe_closed_by_reader_is_silent(store, flags):
    program = f"{sys.executable} -m videoar --store {store} show videos --rows 9 {' '.join(flags)}"
    script = f"set -o pipefail; {program} | head -c 1 >/dev/null; exit $?"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where the pipe took all of it before head ended


@pytest.mark.usefixtures("runs")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_on_full_disk_is_one_line(store):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "videoar", "--store", store, "ls"], cwd=ROOT,
            env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: stdout: No space left on device\n")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_stream_is_no_error(store, closed):
    command = f"{sys.executable} -m videoar --store {store} ls {closed}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("runs")
def test_file_name_not_encodable_is_escaped(store):
    command = [sys.executable, "-m", "videoar", "--store", store, "show", "videos", "--rows", "9"]
    env = environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"h\xe4mmer.mp4" in done.stdout


def terminal(columns: int, *arguments: str, **extra: str) -> str:
    """Return what the command line prints on a terminal of a width."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {**environment(TERM="xterm-256color", **extra)}
    env.pop("COLUMNS", None)
    command = [sys.executable, "-m", "videoar", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        out = b""
        while True:
            try:
                out += os.read(ours, 65536)
            except OSError:  # Linux answers EIO when the last writer has gone
                break
        assert child.wait() == 0, out
    os.close(ours)
    return out.decode().replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_terminal_of_60_columns_fits_tables_and_obeys_no_color(store):
    columns = 60
    for arguments in (["status"], ["gate"]):
        coloured = terminal(columns, "--store", store, *arguments)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
        tables = [line for line in plain.splitlines() if not line.startswith(("report:", "run "))]
        assert max(len(line.rstrip()) for line in tables) <= columns, plain
        assert plain.isascii()
        assert "\x1b[32m" in coloured
        bare = terminal(columns, "--store", store, *arguments, NO_COLOR="1")
        assert "\x1b[3" not in bare
        assert re.sub(r"\x1b\[[0-9;]*m", "", bare) == plain


@pytest.mark.parametrize("target", ["ray://head:10001", "job", "kuberay", "lcoal", "host:port"])
def test_make_engine_unusable_target_hints_at_host_port(target):
    with pytest.raises(ConfigError, match=f"{target}: .*on a node of the cluster use .*HOST:PORT"):
        api.make_engine(target)


def test_import_api_loads_no_heavy_package():
    heavy = {"ray", "torch", "pyarrow", "pydantic", "yaml", "rich"}
    code = f"import sys, videoar.api; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_a_verb(shell):
    env = environment(
        _VIDEOAR_COMPLETE=f"complete_{shell}", COMP_WORDS="videoar qu", COMP_CWORD="1"
    )
    env["_TYPER_COMPLETE_ARGS"] = "videoar qu"
    command = [sys.executable, "-m", "videoar"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert "quarantine" in done.stdout, done.stderr


def test_stages_are_described_with_all_options(store):
    code, out, _ = call(store, "stages", "--json")
    stages = {stage["name"]: stage for stage in json.loads(out)["stages"]}
    assert (code, list(stages)[:3]) == (0, ["ingest", "profile", "filter"])
    options = {option["name"]: option for option in stages["pretrain"]["options"]}
    assert options["training.phases[].steps"]["unit"] == "steps"
    code, out, _ = call(store, "stages", "ingest")
    assert code == 0
    assert "rate_fps" in out
    assert "number or null (> 0 and <= 120)" in out
    assert call(store, "stages")[1].splitlines()[1].startswith("ingest ")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b"pipeline: p\nday: 2026-01-31\n",
            ":2: 2026-01-31 is a date in YAML 1.1, text in YAML 1.2",
        ),
        (b"a: &a {b: 1}\nc:\n  <<: *a\n", ":3: << merges mappings, which is not supported"),
        (b"a: [.inf]", ":1: .inf is not a finite number"),
        (b"? [a]\n: b", ":1: a key is a collection"),
        (b"a: " + b"[" * 3000, ":1: is nested more than 64 levels deep"),
        (b"a: \x00", ":1: character \\x00 is not allowed in YAML"),
        (b"a: \xff", ":1: not UTF-8 text"),
        (b"a: 1\n---\n", ":2: a second document starts"),
        (b"", ": is empty"),
    ],
    ids=lambda value: value[2:20] if isinstance(value, str) else "",
)
def test_validate_and_run_name_what_is_no_json_data_in_one_line(store, tmp_path, content, line):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    code, out, _ = call(store, "validate", str(path))
    assert code == 2
    assert out.startswith(f"{path}{line}")
    assert out.count("\n") == 1
    got, _, err = fail(store, "run", str(path))
    assert (got, err.splitlines()[0]) == (2, f"error: {out.strip()}")


def test_model_depth_of_a_million_is_rejected(store, tmp_path):
    document = yaml.safe_load((ROOT / "pipelines/quickstart.yaml").read_text())
    document["stages"]["model"]["model"] = {"depth": 10**6}
    path = tmp_path / "deep.yaml"
    path.write_text(yaml.safe_dump(document))
    for verb in ("validate", "plan"):
        code, out, err = call(store, verb, str(path))
        assert code == 2
        (line,) = (out + err).splitlines()
        assert "stages.model.model.depth: " in line
        assert "<= 1,024, not 1000000" in line


@pytest.fixture
def toy_file(tmp_path, monkeypatch):
    """Return a function that writes a pipeline of toy stages which the command line can run."""
    for name, stage in REGISTRY.items():
        monkeypatch.setitem(BUILTIN, name, stage)

    def write(*names: str, **options: dict | None) -> list[str]:
        videos = write_videos(tmp_path / "videos", *names)
        path = tmp_path / "toy.yaml"
        path.write_text(json.dumps(toy_document(videos, **options)))  # JSON is YAML
        return [(tmp_path / "store").as_uri(), "run", str(path), "--target", "inline"]

    return write


@pytest.mark.slow  # writes an MLflow database
def test_run_blocked_by_gate_prints_stages_and_report(toy_file):
    arguments = toy_file("a.mp4", gate={"bound": 2.0})
    code, out, err = call(*arguments, VIDEOAR_LOG="json")
    assert code == 4
    assert "GATE_BLOCKED" in out.splitlines()[0]
    report = Path(out.splitlines()[-1].removeprefix("report: "))
    assert report.read_text().startswith("<!doctype html>")
    assert err.splitlines()[-1].startswith("error: ")
    assert "rows >= 2.0" in err.splitlines()[-1]
    code, out, _ = call(*arguments, "--json")
    document = json.loads(out)
    assert (code, document["status"], document["error"]["exit_code"]) == (4, "GATE_BLOCKED", 4)
    assert document["error"]["type"] == "GateError"
    assert {stage["name"]: stage["status"] for stage in document["stages"]} == {
        "big": "CACHED", "few": "CACHED", "model": "CACHED", "gate": "GATE_BLOCKED",
    }  # fmt: skip
    assert Path(document["report"]).exists()


@pytest.mark.slow  # writes an MLflow database
def test_run_failed_prints_stages_and_error(toy_file):
    code, out, err = call(*toy_file("explode.mp4"), "--json", VIDEOAR_LOG="json")
    document = json.loads(out)
    assert (code, document["status"], document["error"]["type"]) == (3, "FAILED", "StageError")
    assert [line for line in err.splitlines() if "boom" in line and line.startswith("error: ")]


@pytest.mark.slow  # writes an MLflow database
def test_run_until_marks_other_stages_skipped(toy_file):
    code, out, err = call(*toy_file("a.mp4"), "--until", "few", "--json")
    assert code == 0, err
    statuses = {stage["name"]: stage["status"] for stage in json.loads(out)["stages"]}
    assert statuses == {
        "big": "SUCCEEDED", "few": "SUCCEEDED", "model": "SKIPPED", "gate": "SKIPPED",
    }  # fmt: skip


def test_run_blocks_have_a_line_per_reason_of_skipped_stages(runs):
    reasons = {"big": "nothing new", "few": "no champion", "model": "nothing new", "gate": ""}
    stages = tuple(
        StageRun(name=name, type="t", status="SKIPPED", reason=reason)
        for name, reason in reasons.items()
    )
    blocks = run_blocks(runs[0].model_copy(update={"stages": stages}), None)
    assert blocks[-3:-1] == ["skipped: nothing new (big, model)", "skipped: no champion (few)"]


def test_run_dry_run_equals_plan(toy_file, tmp_path):
    store, _, path, *target = toy_file("a.mp4")
    for flags in ([], ["--json"], ["--until", "few"]):
        dry = call(store, "run", path, *target, "--dry-run", *flags)
        assert dry == call(store, "plan", path, *target, *flags)
        assert dry[0] == 0, dry[2]
    assert not list((tmp_path / "store").rglob("run.json"))
    _, out, _ = call(store, "plan", path, "--until", "few", "--json")
    assert [stage["name"] for stage in json.loads(out)["stages"]] == ["big", "few"]
    code, error, _ = fail(store, "plan", path, "--from", "model")
    assert (code, error["where"], error["what"]) == (2, "stages.big", "has no finished snapshot")
    code, error, _ = fail(store, "plan", path, "--from", "model", "--until", "few")
    assert (code, error["where"]) == (2, "--from model")


def test_run_interrupted_hints_at_resume(toy_file, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.support.toys.Pick.reduce", interrupted)
    code, out, err = call(*toy_file("a.mp4"), "--json", VIDEOAR_LOG="json")
    document = json.loads(out)
    assert (code, document["status"], document["error"]["exit_code"]) == (130, "CANCELLED", 130)
    assert f"videoar resume {document['run_id']}" in err.splitlines()[-1]
