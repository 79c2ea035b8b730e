"""Validate a pipeline file, or the rows, files and objects of a snapshot."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoar.contracts.contract import load_contract
from videoar.contracts.names import MODELS
from videoar.core.errors import ConfigError, TransientStorageError, VideoARError
from videoar.core.types import FileRef
from videoar.media.decode import decodable_frames
from videoar.pipeline.mistakes import SpecError
from videoar.pipeline.spec import load_pipeline
from videoar.records.names import find_snapshot
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.unique_keys import duplicate_keys

if TYPE_CHECKING:
    import numpy as np

    from videoar.storage.token_codec import Grid

Mistake = dict[str, Any]
"""`path` and `message`; of a deep check also `kind` and `row`."""


def validate_pipeline(path: Path) -> list[Mistake]:
    """Return the mistakes of a pipeline file; empty if there are none."""
    try:
        load_pipeline(path)
    except SpecError as error:
        return [vars(mistake) for mistake in error.mistakes]
    except ConfigError as error:
        what = f"{error.what} ({error.hint})" if error.hint else error.what
        return [{"path": error.where, "message": what}]
    return []


def validate_snapshot(
    store: Store, name: str, *, deep: bool = False, tokenizer: str | None = None
) -> list[Mistake]:
    """Return what is wrong with the rows and files of a snapshot; empty if nothing is.

    Args:
        store: where the snapshot is.
        name: its name.
        deep: also check pages, layout, payload, and the objects that rows name; decode clips.
        tokenizer: name of the tokenizer that the tokens must be of; None means the one in the
            snapshot's provenance.

    Raises:
        ConfigError: `tokenizer` names no tokenizer.
        StorageError: the store does not answer; nothing was checked.
    """
    snapshot = find_snapshot(store, name)
    if not deep:
        mistakes = [mistake for file in snapshot.files for mistake in _check_file(snapshot, file)]
        duplicates = duplicate_keys(snapshot)
        return mistakes + [{"path": key.second.key, "message": str(key)} for key in duplicates]
    from videoar.storage.audit import audit

    digest = _tokenizer_digest(store, snapshot, tokenizer)
    findings = audit(snapshot, requantize, decodable_frames, digest)
    return [finding.model_dump() for finding in findings]


def _check_file(snapshot: Snapshot, file: FileRef) -> list[Mistake]:
    contract = load_contract(snapshot.contract)
    try:
        contract.conform(snapshot.read_file(file, verify=True), file.key)
    except TransientStorageError:  # the file may be intact
        raise
    except VideoARError as error:
        what = f"{error.what} ({error.hint})" if error.hint else error.what
        return [{"path": error.where, "message": what}]
    return []


def _tokenizer_of(store: Store, snapshot: Snapshot) -> str | None:
    """Return the tokenizer of a snapshot of tokens; `compact` names the tokens it read instead."""
    parents = snapshot.commit.provenance.parents
    # follow a chain of compactions back to the output of `tokenize`
    while "tokenizer" not in parents and "tokens" in parents:
        parents = store.snapshot(parents["tokens"]).commit.provenance.parents
    return parents.get("tokenizer")


def _tokenizer_digest(store: Store, snapshot: Snapshot, name: str | None) -> str | None:
    name = name or _tokenizer_of(store, snapshot)
    if name is None:
        return None
    model = find_snapshot(store, name)
    rows = model.table(["kind", "digest"]).to_pylist() if model.contract == MODELS else []
    if [row["kind"] for row in rows] != ["tokenizer"]:
        hint = "name a snapshot of a train_tokenizer stage"
        raise ConfigError(f"--tokenizer {name}", "is not a tokenizer", hint)
    digest: str = rows[0]["digest"]
    return digest


def requantize(latent_NTKHW: "np.ndarray", scales: "Sequence[Grid]") -> list[bytes]:
    """Quantize stored latents as the tokenize stage does.

    Args:
        latent_NTKHW: float16, one latent per row.
        scales: height and width of each scale.

    Returns:
        The packed bits of each row, as they are stored.
    """
    import torch  # late: a check of any other table needs no torch

    from videoar.model.tokenizer.quantizer import MultiScaleBSQ
    from videoar.storage.token_codec import pack_bits

    quantizer = MultiScaleBSQ(latent_NTKHW.shape[2], tuple(scales))
    # copied: arrays of Arrow are read-only, and torch warns about those
    latent = torch.from_numpy(latent_NTKHW.copy()).transpose(1, 2)
    scales_bits = [bits.numpy() for bits in quantizer.encode(latent)]
    return [pack_bits([bits[row] for bits in scales_bits]) for row in range(len(latent))]
