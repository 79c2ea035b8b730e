"""Export a transformer with its tokenizer and its card, as a folder or as one file.

    model.safetensors, config.json              the transformer, as the store has them
    tokenizer/model.safetensors, config.json    its tokenizer
    README.md                                   the card

or with `--single-file`

    videoar.safetensors    tensors `transformer.<name>` and `tokenizer.<name>`; its metadata has
                           both configs and the card

A folder appears complete or not at all: it is written under a hidden name beside the target.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from videoar.admin.model_card import ModelCard, to_markdown
from videoar.admin.model_records import card_of, model_row
from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError
from videoar.core.scratch import Scratch, sweep
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

CARD, SINGLE_FILE, TOKENIZER = "README.md", "videoar.safetensors", "tokenizer"
PARTS = ("transformer", TOKENIZER)


def export_model(store: Store, snapshot: Snapshot, to: str, *, single_file: bool) -> dict[str, Any]:
    """Write a model to a new folder.

    Args:
        store: where the model, its tokenizer and its lineage are.
        snapshot: of the transformer.
        to: path of a folder that does not exist or is empty.
        single_file: one file instead of one per network and config.

    Returns:
        The manifest: `{format, snapshot, digest, rows, files: [{name, rows, size_bytes, sha256}]}`.

    Raises:
        ConfigError: the folder exists and is not empty, or cannot be written; the snapshot is no
            transformer; its tokenizer is not in the store.
        StorageError: a file of the model is damaged or missing.
    """
    target = _local(to)
    _require_empty(target, to)
    card = card_of(store, snapshot.id)
    write = _write_file if single_file else _write_folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)  # left by an export that was killed
        with Scratch(target.parent) as scratch:
            folder = scratch / "export"
            folder.mkdir()
            write(store, card, folder)
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = [_described(path, folder) for path in paths]
            crash_point("export-written")
            folder.rename(target)
    except OSError as error:  # those of the store are StorageErrors
        raise ConfigError(f"--to {to}", f"cannot be written: {error.strerror}") from error
    head = {"format": "safetensors", "snapshot": snapshot.id, "digest": card.model.digest}
    return {**head, "rows": 1, "files": files}


def _local(to: str) -> Path:
    url = urlsplit(to)
    if url.scheme not in {"", "file"} or url.netloc:
        hint = "give a folder of this machine, and upload it"
        raise ConfigError(f"--to {to}", "a model is exported to a local folder only", hint)
    return Path(unquote(url.path) if url.scheme else to).absolute()


def _require_empty(target: Path, to: str) -> None:
    try:
        names = sorted(path.name for path in target.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"--to {to}", f"cannot be used: {error.strerror}") from error
    if names:
        raise ConfigError(f"--to {to}", f"has {names[0]} in it", "give an empty folder")


def _described(path: Path, folder: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    name = path.relative_to(folder).as_posix()
    return {"name": name, "rows": 0, "size_bytes": path.stat().st_size, "sha256": sha256}


def _write_folder(store: Store, card: ModelCard, folder: Path) -> None:
    files = _fetch(store, card.model.snapshot, folder)
    of_tokenizer = _fetch(store, card.tokenizer.snapshot, folder / TOKENIZER)
    checksums = files | {f"{TOKENIZER}/{name}": sha256 for name, sha256 in of_tokenizer.items()}
    done = card.model_copy(update={"checksums": checksums})
    (folder / CARD).write_text(to_markdown(done), encoding="utf-8")


def _fetch(store: Store, snapshot_id: str, folder: Path) -> dict[str, str]:
    """Copy a network's files; return their SHA-256 by name, which fetching has compared."""
    files = model_row(store.snapshot(snapshot_id))["files"]
    store.fetch_folder(files, folder)
    return {file["path"]: file["sha256"] for file in files}


def _write_file(store: Store, card: ModelCard, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors, configs, checksums = {}, {}, {}
    with Scratch(folder.parent) as scratch:
        for part, snapshot in zip(PARTS, (card.model, card.tokenizer), strict=True):
            _fetch(store, snapshot.snapshot, scratch / part)
            own = load_file(scratch / part / "model.safetensors")
            configs[part] = (scratch / part / "config.json").read_text()
            checksums[part] = content_digest(configs[part], own)
            tensors.update({f"{part}.{name}": tensor for name, tensor in own.items()})
        done = card.model_copy(update={"checksums": checksums})
        # `format` is what other readers of safetensors expect
        metadata = {"format": "pt", "card": to_markdown(done), **configs}
        save_file(tensors, folder / SINGLE_FILE, metadata)


def content_digest(config: str, tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 over a network's config and the names, shapes and bytes of its weights."""
    import torch

    digest = hashlib.sha256(config.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
