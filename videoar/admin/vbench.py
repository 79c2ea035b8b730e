"""VBench: its prompts, checks before a run, its files for elsewhere, and its environment."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from videoar import __version__
from videoar.contracts.contract import load_contract
from videoar.contracts.names import PROMPTS, SAMPLES, SCORES
from videoar.core.errors import ConfigError, ContractError, VideoARError
from videoar.core.ids import digest_json
from videoar.core.scratch import Scratch
from videoar.core.settings import settings
from videoar.core.types import Provenance
from videoar.evaluation import vbench_process, vbench_prompts, vbench_weights
from videoar.evaluation.vbench_constants import DIMENSIONS
from videoar.evaluation.vbench_samples import VBenchSamples
from videoar.records.names import find_snapshot
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

ARCHIVE = "vbench_results.zip"
REQUIREMENTS = Path(__file__).with_name("vbench_requirements.txt")
_DATASET = "vbench_prompts"
_DETECTRON = "-m pip install git+https://github.com/facebookresearch/detectron2.git"


def plan(
    store: Store,
    *,
    samples: int = vbench_prompts.NUM_SAMPLES,
    flickering: int = vbench_prompts.NUM_SAMPLES,
    seed: int = 0,
    rewritten: Path | None = None,
) -> dict[str, Any]:
    """Commit the samples that VBench needs as a snapshot of `prompts@1`.

    The same call finds the same snapshot. Arguments as of `vbench_prompts.plan`.

    Returns:
        `{snapshot, entries, prompts, samples, rewritten}`.

    Raises:
        ConfigError: fewer samples than VBench evaluates, or an unusable file of prompts.
    """
    if samples < vbench_prompts.NUM_SAMPLES:
        what = f"VBench evaluates {vbench_prompts.NUM_SAMPLES} samples of a prompt"
        raise ConfigError(f"--samples {samples}", what)
    rows = list(vbench_prompts.plan(samples, flickering, seed, rewritten))
    fingerprint = digest_json({"vbench": rows})
    dataset = store.dataset(_DATASET, PROMPTS)
    snapshot = dataset.find(fingerprint)
    if snapshot is None:
        provenance = Provenance(
            run_id="vbench-plan", pipeline="vbench plan", stage="", fingerprint=fingerprint,
            code_version=__version__,
        )  # fmt: skip
        table = pa.Table.from_pylist(rows, load_contract(PROMPTS).arrow_schema)
        snapshot = dataset.commit([dataset.write(table)], provenance, {})
    return {
        "snapshot": snapshot.id,
        "entries": len(vbench_prompts.entries()),
        "prompts": len(vbench_prompts.prompts()),
        "samples": len(rows),
        "rewritten": sum(row["prompt"] != row["prompt_id"] for row in rows),
    }


def check(store: Store, name: str) -> dict[str, Any]:
    """Check what the stage `vbench` would do with a snapshot of `samples@1` on this machine.

    Returns:
        `{ok, missing, checks: [{name, ok, detail}], warnings}`: `missing` are all names of videos
        that are not there, `warnings` the licences that forbid commercial use.

    Raises:
        ConfigError: it is no snapshot of samples.
    """
    samples = VBenchSamples(_expect(find_snapshot(store, name), SAMPLES).table().to_pylist())
    missing = samples.missing()
    total = len(samples.rows) + len(missing)
    checks = [
        ("samples", not missing, f"{len(missing)} of {total} videos are missing"),
        ("clips", not samples.problem, samples.problem or "equal in size, rate and duration"),
    ]
    try:
        version = vbench_process.vbench_version(settings().vbench_python)
        checks.append(("interpreter", True, f"vbench {version}"))
    except VideoARError as error:
        checks.append(("interpreter", False, str(error)))
    for weight in vbench_weights.WEIGHTS:
        try:
            digest = vbench_weights.verified(weight, settings().vbench_cache)
            known = "verified" if weight.sha256 else "no digest is published"
            checks.append((weight.path, True, f"SHA-256 {digest[:12]}, {known}"))
        except VideoARError as error:
            checks.append((weight.path, False, str(error)))
    return {
        "ok": all(ok for _, ok, _ in checks),
        "missing": missing,
        "checks": [{"name": n, "ok": ok, "detail": detail} for n, ok, detail in checks],
        "warnings": vbench_weights.licence_warnings(DIMENSIONS),
    }


def export(store: Store, name: str, to: str | Path) -> dict[str, Any]:
    """Write samples under the names of VBench, or the archive of scores that its leaderboard takes.

    The folder appears when it is complete.

    Args:
        store: where the snapshot is.
        name: of a snapshot of `samples@1` or `scores@1`.
        to: new or empty folder. Videos of a store on this machine are links to it.

    Returns:
        `{snapshot, to, files}`, the number of files.

    Raises:
        ConfigError: neither samples nor scores, or the folder is not empty.
        ContractError: a dimension was not evaluated, or a video is damaged.
    """
    snapshot = find_snapshot(store, name)
    target = Path(to).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--to {to}", "is not empty", "give another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with Scratch(target.parent) as scratch:
        folder = scratch / "export"
        folder.mkdir()
        if snapshot.contract == SAMPLES:
            samples = VBenchSamples(snapshot.table().to_pylist())
            samples.export(store, folder)
            if samples.damaged:
                what = f"{len(samples.damaged)} videos are damaged: {min(samples.damaged)}"
                raise ContractError(snapshot.id, what, "generate them again")
        else:
            (folder / ARCHIVE).write_bytes(_archive(store, _expect(snapshot, SCORES)))
        num = sum(1 for _ in folder.iterdir())
        folder.replace(target)
    return {"snapshot": snapshot.id, "to": str(target), "files": num}


def _archive(store: Store, scores: Snapshot) -> bytes:
    """Return a zip of the 16 result files; without one, the leaderboard would count it as 0."""
    rows = {row["metric"]: row for row in scores.table().to_pylist()}
    keys = {
        name: json.loads(rows[f"vbench/{name}"]["details_json"]).get("result_key")
        for name in DIMENSIONS
        if f"vbench/{name}" in rows
    }
    if missing := [name for name in DIMENSIONS if not keys.get(name)]:
        what = f"VBench has not evaluated: {', '.join(missing)}"
        raise ContractError(scores.id, what, "see videoar vbench check")
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in DIMENSIONS:
            # a fixed date: equal scores are equal bytes
            info = zipfile.ZipInfo(f"{name}_eval_results.json")
            archive.writestr(info, store.objects.get(keys[name]), zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def _expect(snapshot: Snapshot, contract: str) -> Snapshot:
    if snapshot.contract != contract:
        raise ConfigError(snapshot.id, f"is {snapshot.contract}, not {contract}")
    return snapshot


def setup(to: str | Path, python: str = "") -> dict[str, Any]:
    """Create a virtual environment with `vbench` and its pinned dependencies; repeatable.

    Returns:
        `{python, requirements, missing, settings}`: `missing` are packages that PyPI does not have,
        each with its command.

    Raises:
        ConfigError: an installer failed.
    """
    target = Path(to).absolute()
    own = target / "bin" / "python"
    for command in (
        [python or sys.executable, "-m", "venv", str(target)],
        [str(own), "-m", "pip", "install", "--requirement", str(REQUIREMENTS)],
    ):
        try:
            subprocess.run(command, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(str(to), f"{' '.join(command)}: {error}") from error
    return {
        "python": str(own),
        "requirements": str(REQUIREMENTS),
        "missing": [f"detectron2: {own} {_DETECTRON}"],
        "settings": {"VIDEOAR_VBENCH_PYTHON": str(own)},
        "warnings": vbench_weights.licence_warnings(DIMENSIONS),
    }
