"""The stand-in of VBench as an interpreter, its folder of weights, and samples of its prompts."""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.core.types import Provenance
from videoar.evaluation import vbench_prompts, vbench_weights

STANDIN = Path(__file__).parents[1] / "vbench_standin"


def interpreter(folder: Path) -> Path:
    """Write a command that is Python with the stand-in."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={STANDIN} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def weights(folder: Path, monkeypatch) -> Path:
    """Write small weight files, and expect their digests in place of the published ones."""
    changed = []
    for weight in vbench_weights.WEIGHTS:
        path = folder / "weights" / weight.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(weight.path.encode())
        sha256 = hashlib.sha256(weight.path.encode()).hexdigest()[: len(weight.sha256)]
        changed.append(vbench_weights.Weight(weight.path, weight.dimensions, sha256))
    monkeypatch.setattr("videoar.evaluation.vbench_weights.WEIGHTS", tuple(changed))
    (folder / "weights/fault.json").write_text("{}")
    return folder / "weights"


def set_fault(folder: Path, **faults: str) -> None:
    (folder / "fault.json").write_text(json.dumps(faults))


def sample_rows(store, video=b"video", **columns) -> list[dict]:
    """Return all samples that VBench needs; they share one video."""
    ref = store.put_object(video, ".mp4")
    common = {
        "model_digest": "m", "tokenizer_digest": "t", "sampler_json": "{}", "steps": 1,
        "num_frames": 17, "rate_fps": 8.0, "width_px": 64, "height_px": 64, "label": None,
        "video_key": ref.key, "video_sha256": ref.sha256, "video_size_bytes": len(video),
        **columns,
    }  # fmt: skip
    return [
        {**row, **common, "sample_id": hashlib.md5(str(row).encode()).hexdigest()}
        for row in vbench_prompts.plan()
    ]


def commit_samples(store, rows, name="samples"):
    """Commit rows of samples; return the snapshot."""
    table = pa.Table.from_pylist(rows, load_contract("samples@1").arrow_schema)
    dataset = store.dataset(name, "samples@1")
    provenance = Provenance(
        run_id="r", pipeline="p", stage=name, fingerprint=str(len(rows)), code_version="0"
    )
    return dataset.commit([dataset.write(table)], provenance, {})
