"""Run the package `vbench`, in an interpreter of its own: its dependencies do not fit ours.

One process per dimension, without a process group of torch: with several ranks VBench weights
`subject_consistency` by video instead of by frame. VBench fetches what it lacks, and hangs where it
cannot, so the weights are verified before, and the process has no way to the network.
"""

import json
import math
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from videoar.core.errors import ConfigError, ContractError, one_line
from videoar.core.ids import canonical_json
from videoar.core.settings import child_environment
from videoar.core.types import Json
from videoar.evaluation.vbench_prompts import SUITE
from videoar.media.process import kill_group, tail

_START_S = 120.0  # chosen: a cold start of Python from a network drive
_CLOSED = "http://127.0.0.1:9"  # the port `discard`, where nothing listens
_OFFLINE = {
    **{f"{name}_proxy": _CLOSED for name in ("http", "https", "ftp", "all")},
    **{f"{name}_PROXY": _CLOSED for name in ("HTTP", "HTTPS", "FTP", "ALL")},
    "no_proxy": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GIT_TERMINAL_PROMPT": "0",
}  # fmt: skip
_VERSION = "from importlib.metadata import version; print(version('vbench'))"
_EVALUATE = """
import json, os, sys, threading

def exit_with_parent():  # the other end of the pipe closes when the parent exits
    os.read(0, 1)  # not sys.stdin, whose lock Python wants when it exits
    os._exit(1)

threading.Thread(target=exit_with_parent, daemon=True).start()
import torch
from vbench import VBench
dimension, videos, suite, out = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
VBench(torch.device(device), suite, out).evaluate(
    videos_path=videos, name=dimension, dimension_list=[dimension], local=True, read_frame=False,
    mode="vbench_standard", imaging_quality_preprocessing_mode="longer",
)
with open(os.path.join(out, "provenance.json"), "w") as file:
    json.dump({"device": device, "torch": str(getattr(torch, "__version__", ""))}, file)
"""


@dataclass(frozen=True)
class DimensionResult:
    """The score of one dimension."""

    value: float
    by_video: Mapping[str, float]
    """Values by file name, on the scale of VBench's own file."""
    provenance: Mapping[str, Json]
    data: bytes
    """The file that VBench wrote, with names of videos in place of their paths."""


def vbench_version(python: str) -> str:
    """Return the version of the package `vbench` of an interpreter.

    Raises:
        ConfigError: there is no interpreter, or it has no such package.
    """
    hint = "see videoar vbench setup -h"
    if not python:
        raise ConfigError("VIDEOAR_VBENCH_PYTHON", "is not set", hint)
    try:
        done = subprocess.run(
            [python, "-c", _VERSION],
            capture_output=True, timeout=_START_S, check=True, text=True, env=_environment(""),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        what = f"has no package vbench: {lines[-1] if lines else error}"
        raise ConfigError(python, what, hint) from error
    return done.stdout.strip()


def evaluate_dimension(
    python: str,
    cache: str,
    dimension: str,
    videos: Path,
    names: Collection[str],
    timeout_s: float,
) -> DimensionResult:
    """Evaluate a dimension on a folder of videos.

    Args:
        python: interpreter with the package `vbench`.
        cache: folder of weights, verified.
        dimension: its name.
        videos: folder with the videos under the names of VBench; its results go beside it.
        names: of the videos that must be evaluated.
        timeout_s: of the process.

    Raises:
        ContractError: the process failed or took too long, or its result is incomplete.
    """
    out = videos.with_name(f"{dimension}.results")
    out.mkdir()
    command = [python, "-c", _EVALUATE, dimension, str(videos), str(SUITE), str(out)]
    with (out / "log").open("w+b") as log:
        process = subprocess.Popen(
            command, cwd=out, env=_environment(cache), start_new_session=True,
            stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ContractError(dimension, f"took more than {timeout_s:g} s") from error
        finally:
            kill_group(process)
            if process.stdin:
                process.stdin.close()
        lines = tail(log).splitlines()
    if code != 0:
        what = f"its process exited with status {code}: {one_line(lines[-1]) if lines else ''}"
        raise ContractError(dimension, what.rstrip(": "))
    result, notes = out / f"{dimension}_eval_results.json", out / "provenance.json"
    if not result.is_file():
        raise ContractError(dimension, "its process wrote no result")
    value, by_video = parse_result(result.read_bytes(), dimension, names)
    videos_of: list[Json] = [
        {"video_path": k, "video_results": v} for k, v in sorted(by_video.items())
    ]
    data = canonical_json({dimension: [value, videos_of]}).encode()
    return DimensionResult(value, by_video, json.loads(notes.read_bytes()), data)


def parse_result(
    data: bytes, dimension: str, names: Collection[str]
) -> tuple[float, dict[str, float]]:
    """Return the score and the values by file name of `<dimension>_eval_results.json`.

    Raises:
        ContractError: it is no such file, or not of exactly the named videos.
    """
    try:
        score, videos = json.loads(data)[dimension]
        value = float(score)
        by_video = {Path(v["video_path"]).name: float(v["video_results"]) for v in videos}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"its result cannot be read: {type(error).__name__}: {one_line(error)}"
        raise ContractError(dimension, what) from error
    if not all(map(math.isfinite, (value, *by_video.values()))):
        raise ContractError(dimension, "its result is not finite")
    # VBench leaves out videos in which it finds no object to see the colour of
    missing = [] if dimension == "color" else sorted(set(names) - by_video.keys())
    unknown = sorted(by_video.keys() - set(names))
    for what, some in (("lacks", missing), ("has unknown", unknown)):
        if some:
            raise ContractError(dimension, f"its result {what} {len(some)} videos: {some[0]}")
    return value, by_video


def _environment(cache: str) -> dict[str, str]:
    passed = {k: v for k, v in child_environment().items() if not k.startswith("PYTHON")}
    folders = {
        "VBENCH_CACHE_DIR": cache,
        # GRiT and Tag2Text take their tokenizer from the cache of Hugging Face
        "HF_HOME": f"{cache}/huggingface",
        "TORCH_HOME": f"{cache}/torch",
    }
    return {**passed, **_OFFLINE, **(folders if cache else {})}
