"""Rules of the repository that no linter knows."""

import re
import resource
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from videoar.core.errors import ConfigError
from videoar.pipeline.spec import load_pipeline

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "ray",
    "boto3",
    "mlflow",
    "dask",
    "great_expectations",
    "deltalake",
    "av",
    "jinja2",
    "transformers",
)


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def child_cpu_s(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("module", ["videoar", "videoar.cli", "videoar.api"])
def test_import_loads_no_heavy_package(module):
    code = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == []


def test_help_takes_less_than_half_a_second_of_cpu():
    script = Path(sys.executable).with_name("videoar")
    assert min(child_cpu_s(str(script), "--help") for _ in range(3)) < 0.5


@pytest.mark.parametrize("given", [[], ["INPUT=/a folder/of videos"]])
@pytest.mark.parametrize("target", ["setup", "demo", "test", "check", "bench", "soak"])
def test_make_recipes_are_valid_shell(target, given):
    make = ["make", "--no-print-directory", "--dry-run", target, *given]
    recipe = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert subprocess.run(["sh", "-n"], input=recipe, text=True, check=False).returncode == 0
    if target == "demo" and given:
        assert "inputs.videos=/a folder/of videos" in shlex.split(recipe.replace("\\\n", " "))


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_jobs_have_at_most_40_lines_that_are_not_blank(path):
    assert sum(map(bool, path.read_text().splitlines())) <= 40


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_pipelines_are_valid(path):
    spec = load_pipeline(path)
    raw = "prompts" if path.stem == "generate" else "videos"
    assert raw in spec.inputs, "every pipeline can be pointed at other data the same way"
    with pytest.raises(ConfigError):
        load_pipeline(path, ["stages.no_such_stage.x=1"])


def test_tracked_files_contain_no_machine_path():
    private = tuple("/".join(("", *parts)) for parts in (("work", ""), ("root", ""), ("opt", "")))
    allowed = {ROOT / "tests/test_repo_shape.py"}
    for path in set(tracked()) - allowed:
        if not path.is_file() or path.suffix in {".gif", ".npz", ".png", ".safetensors"}:
            continue
        words = path.read_text(encoding="utf-8").replace('"', " ").replace("'", " ").split()
        assert not [word for word in words if word.startswith(private)], path


def test_tracked_files_are_small_and_no_media():
    for path in tracked():
        if path.is_file():
            assert path.stat().st_size <= 500_000, path
            assert path.suffix not in {".mp4", ".webm", ".mkv", ".avi", ".mov", ".parquet"}, path


def test_constraints_satisfy_the_project_requirements():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert wanted.name.lower() in pins, text
        assert wanted.specifier.contains(pins[wanted.name.lower()]), text


def test_installed_script_is_videoar():
    scripts = {e.name: e.value for e in distribution("videoar").entry_points}
    assert scripts == {"videoar": "videoar.cli:main"}


def test_wheel_contains_py_typed():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["videoar"]  # all that git does not ignore
    assert ROOT / "videoar" / "py.typed" in tracked()


def test_tests_import_only_support_and_checks():
    pattern = re.compile(r"(?:from|import) tests\.(?!support\b|checks\b)\S+")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert pattern.findall(path.read_text(encoding="utf-8")) == [], path


def test_every_noqa_has_a_reason():
    marks = [
        line
        for path in tracked()
        if path.suffix == ".py" and path != Path(__file__)
        for line in path.read_text(encoding="utf-8").splitlines()
        if "# noqa" in line
    ]
    assert [line for line in marks if not re.search(r"# noqa: [A-Z0-9, ]+ - \w", line)] == []
    assert len(marks) <= 40
