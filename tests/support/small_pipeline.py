"""The quickstart pipeline with small sizes: the same file and stages, seconds of work."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from videoar.cli import main
from videoar.core.settings import settings

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipelines" / "quickstart.yaml"
OVERRIDES = [
    "inputs.videos=rendered://shapes?num_videos=12&seed=0",
    "stages.clips.size_px=32",
    "stages.clips.max_clips_per_source=1",
    "stages.clips.sources_per_shard=4",
    "stages.tokenizer.preset=tiny",
    "stages.tokenizer.tokenizer={}",
    "stages.tokenizer.training.steps=6",
    "stages.tokenizer.training.image_steps=2",
    "stages.tokenizer.checkpoint_every=2",
    "stages.tokens.min_psnr_db=1",
    "stages.model.preset=tiny",
    "stages.model.model={}",
    "stages.model.training.phases=[{steps: 6, batch_size: 4}]",
    "stages.model.checkpoint_every=2",
    "stages.evalset.num_reference=2",
    "stages.evalset.num_prompts=2",
    "stages.evalset.min_samples=4",
    "stages.scores.num_reconstructions=2",
    "stages.scores.num_examples=1",
    "stages.release.rules=[{metric: recon/psnr, min: 1.0}]",
    "stages.release.allow_without_samples=true",
]
MORE_VIDEOS = "inputs.videos=rendered://shapes?num_videos=30&seed=0"
"""Some are broken; enough are good for a Frechet distance."""
OF_CHAMPION = ["champion_samples", "champion_features", "champion_scores"]
"""Stages that are skipped without a champion."""
STAGES = [
    *("clips", "good", "tokenizer", "evalset", "tokens", "reference_features", "model"),
    *("samples", "sample_features", "scores", "release"),
]
"""The others, in order."""


def sets(*extra: str, base: Sequence[str] = OVERRIDES) -> list[str]:
    return [part for item in (*base, *extra) for part in ("--set", item)]


def up_to_the_model(folder: Path) -> list[str]:
    """Write the pipeline up to its model; return the arguments to run it."""
    document = yaml.safe_load(PIPELINE.read_text())
    kept = ["clips", "good", "tokenizer", "tokens", "model"]
    document["stages"] = {name: document["stages"][name] for name in kept}
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(document))
    known = [o for o in OVERRIDES if not o.startswith("stages.") or o.split(".")[1] in kept]
    return [str(path), *sets(base=known)]


def environment(**extra: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("VIDEOAR_")}
    return {**clean, "OMP_NUM_THREADS": "1", **extra}


def command(*arguments: str, store: str, target: str = "inline") -> list[str]:
    options = ["--store", store, "--target", target, "--json"]
    return [sys.executable, "-m", "videoar", *options, *arguments]


def videoar(
    *arguments: str, store: str, target: str = "inline", code: int = 0, **extra: str
) -> dict:
    """Call the command line as a user does; return its JSON, and `stderr` if it failed.

    In this process, except on Ray: starting Python with torch, MLflow and Great
    Expectations takes as long as what most of these calls do.
    """
    call = command(*arguments, store=store, target=target)
    run = in_this_process if target == "inline" else in_a_process
    found, out, err = run(call, environment(**extra))
    assert found == code, err[-3000:]
    document = json.loads(out)
    return document if code == 0 else {**document, "stderr": err}


def in_a_process(call: Sequence[str], env: dict[str, str]) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    done = subprocess.run(call, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def in_this_process(call: Sequence[str], env: dict[str, str]) -> tuple[int, str, str]:
    """Do the same by a call of `main`."""
    out, err, on_term = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    settings.cache_clear()
    with (
        patch.dict(os.environ, env, clear=True),
        patch.object(sys, "argv", ["videoar", *call[call.index("--store") :]]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    settings.cache_clear()
    signal.signal(signal.SIGTERM, on_term)
    return end.value.code or 0, out.getvalue(), err.getvalue()
