"""Samples of a model in a folder: MP4 files, a manifest and a table.

    00000.mp4, 00001.mp4, ...   a file per sample, in the order of the prompts
    manifest.jsonl              a row per finished sample, written again after every batch
    samples.parquet             the same rows, written last

Every file appears complete or not at all. A folder without `samples.parquet` is a call that was
interrupted: the same call makes the samples that its manifest does not have.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.admin.loaded_model import LoadedModel
from videoar.contracts.contract import load_contract
from videoar.contracts.names import SAMPLES
from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.ids import canonical_json, sha256_hex
from videoar.core.types import Row
from videoar.media.sources import read_input
from videoar.training.generation import VideoGenerator
from videoar.training.prompts import Prompt, read_prompts
from videoar.training.sample_folder import MANIFEST, TABLE

logger = logging.getLogger(__name__)


class Request(TypedDict, total=False):
    """What is generated: exactly one of `prompt`, `prompts` and `labels` is required."""

    prompt: str | None
    prompts: str | Path | None
    """File or its `file://` or `s3://` address, see `read_prompts`."""
    labels: Sequence[str]
    """Classes of the training."""
    num: int
    """Samples of each prompt; default 1."""
    seed: int
    """Of all samples; default 0. Each has its own, derived as the stage `generate` does."""
    batch: int
    """Samples that are made at once; default 4."""


def requested_rows(loaded: LoadedModel, request: Request) -> list[Row]:
    """Return a row per sample, see `PromptTemplates.samples`.

    Raises:
        ConfigError: see `_prompts`; or a number is out of range.
    """
    rows = _prompts(
        loaded, request.get("prompt"), request.get("prompts"), request.get("labels") or ()
    )
    num, seed = request.get("num", 1), request.get("seed", 0)
    if num < 1 or seed < 0:
        raise ConfigError("generate", f"num {num} or seed {seed} is too small")
    return list(loaded.templates.samples(rows, seed, num))


def _prompts(
    loaded: LoadedModel, text: str | None, file: str | Path | None, labels: Sequence[str]
) -> Iterable[Row]:
    """Return rows of `prompts@1` from exactly one of a text, a file and classes.

    Raises:
        ConfigError: none or several are given, one cannot be used, or the model knows no such
            class.
    """
    if (text is not None) + (file is not None) + bool(labels) != 1:
        raise ConfigError("prompts", "give one of --prompt, --prompts and --labels")
    if text is not None:
        return [Prompt(prompt=text).row("--prompt")]
    if file is not None:
        return read_prompts(read_input(str(file)), str(file))
    known = loaded.card.labels
    for label in labels:
        if known is not None and label not in known:
            hint = did_you_mean(label, known) if known else "it was trained without; use --prompt"
            raise ConfigError(f"--labels {label}", "the model knows no such class", hint)
    return [Prompt(label=label).row("--labels") for label in dict.fromkeys(labels)]


def generate(
    generator: VideoGenerator, requested: Sequence[Row], out: Path, batch_size: int
) -> dict[str, Any]:
    """Make samples in a folder; those that an interrupted call has finished are kept.

    Args:
        generator: of the model, with all settings.
        requested: rows as `PromptTemplates.samples` yields them.
        out: folder, new, empty or of the same call.
        batch_size: samples that are made at once.

    Returns:
        `{samples: [{path, prompt, seed}], steps, seconds}`; steps are the forward passes of this
        call.

    Raises:
        ConfigError: the folder has other files in it or cannot be written.
    """
    start = time.monotonic()
    names = {generator.sample_id(row): f"{i:05d}.mp4" for i, row in enumerate(requested)}
    done = _finished(out, names)
    missing = [row for row in requested if generator.sample_id(row) not in done]
    logger.info("%d samples to make, %d are in %s", len(missing), len(done), out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}", f"cannot be made: {error.strerror}") from error
    steps = 0
    _put(out / MANIFEST, _lines(names, done))  # shows whose folder this is, before the first video
    for first in range(0, len(missing), batch_size):
        made = generator(missing[first : first + batch_size])
        for row, video in zip(made.rows, made.videos, strict=True):
            name = names[row["sample_id"]]
            _put(out / name, video)
            done[row["sample_id"]] = {"path": name, **row}
        crash_point("samples-written")
        _put(out / MANIFEST, _lines(names, done))
        steps += made.steps
    rows = [done[id_] for id_ in names]
    _put(out / TABLE, _table(rows))
    return {
        "samples": [
            {"path": str(out / row["path"]), "prompt": row["prompt"], "seed": row["seed"]}
            for row in rows
        ],
        "steps": steps,
        "seconds": round(time.monotonic() - start, 3),
    }


def _finished(out: Path, names: Mapping[str, str]) -> dict[str, Row]:
    """Return the rows of an earlier, interrupted call whose files are whole.

    Raises:
        ConfigError: the folder has files that the same call would not have left.
    """
    try:
        existing = {path.name for path in out.iterdir()}
        lines = (out / MANIFEST).read_text(encoding="utf-8") if MANIFEST in existing else ""
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"--out {out}", f"cannot be used: {error.strerror}") from error
    own = {MANIFEST, TABLE, *names.values()}
    own |= {f".{name}" for name in own}  # half-written
    if other := sorted(existing - own if MANIFEST in existing else existing):
        raise ConfigError(f"--out {out}", f"has {other[0]} in it", "give an empty folder")
    try:
        rows = {row["sample_id"]: row for row in map(json.loads, lines.splitlines())}
        is_own = {id_: row["path"] for id_, row in rows.items()}.items() <= names.items()
    except (ValueError, LookupError, TypeError):  # no manifest of ours
        rows, is_own = {}, False
    if not is_own:
        what = f"has {MANIFEST} of other samples in it"
        raise ConfigError(f"--out {out}", what, "give an empty folder, or the same options")
    return {id_: row for id_, row in rows.items() if _is_whole(out / row["path"], row)}


def _is_whole(path: Path, row: Row) -> bool:
    return path.is_file() and sha256_hex(path.read_bytes()) == row["video_sha256"]


def _lines(names: Mapping[str, str], done: Mapping[str, Row]) -> bytes:
    return "".join(f"{canonical_json(done[id_])}\n" for id_ in names if id_ in done).encode()


def _table(rows: list[Row]) -> bytes:
    columns = [field for field in load_contract(SAMPLES).arrow_schema if field.name in rows[0]]
    schema = pa.schema([pa.field("path", pa.string()), *columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _put(path: Path, data: bytes) -> None:
    """Write a file that appears complete or not at all."""
    hidden = path.with_name(f".{path.name}")
    try:
        hidden.write_bytes(data)
        Path(hidden).replace(path)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be written: {error.strerror}") from error
