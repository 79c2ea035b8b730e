"""Published models: a network as `model.safetensors` + `config.json`, and its row of `models@1`.

Both files together are enough to build the network again; no pickle is ever written or read.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from videoar.contracts.contract import load_contract
from videoar.contracts.names import MODELS
from videoar.core.errors import ConfigError, ContractError
from videoar.core.ids import canonical_json, digest_json
from videoar.core.scratch import Scratch
from videoar.model.classifier import ClassifierConfig, ClipClassifier
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.storage.delta_log import iter_commits
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.checkpoint import reading

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"

Network = VideoAR | VideoTokenizer | ClipClassifier
_N = TypeVar("_N", VideoAR, VideoTokenizer, ClipClassifier)
_KINDS: dict[type[Network], str] = {
    VideoAR: "transformer", VideoTokenizer: "tokenizer", ClipClassifier: "classifier"
}  # fmt: skip


class ClipShape(NamedTuple):
    """Of the clips that a transformer was trained on."""

    rate_fps: float
    """Frame rate of most of them."""
    num_frames: int
    """Pixel frames of the longest one, as far as the last phase reads them."""


def clip_shape(
    stores: Iterable[Snapshot], last_phase: int | None, time_stride: int
) -> ClipShape | None:
    """Read the shape of clips from token stores; None if all rows were withdrawn.

    Args:
        stores: snapshots of tokens.
        last_phase: frames that the last phase reads of a clip; None for all.
        time_stride: of the tokenizer.
    """
    counts: Counter[tuple[float, int]] = Counter()  # (frame rate, latent frames)
    for snapshot in stores:
        for table in snapshot.read_available(["rate_fps", "t"]):
            counts.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    if not counts:
        return None
    rates: Counter[float] = Counter()
    for (rate_fps, latent), count in counts.items():
        rates[rate_fps] += count * latent  # by length: an image has no frame rate
    stored = 1 + (max(latent for _, latent in counts) - 1) * time_stride
    return ClipShape(rates.most_common(1)[0][0], min(last_phase or stored, stored))


def kind_of(model: Network) -> str:
    """Return the `kind` column of `models@1`."""
    # not by its type: a sharded model has a subclass made by FSDP
    return next(kind for network, kind in _KINDS.items() if isinstance(model, network))


def save_model(model: Network, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a network, by default with its own weights, into an existing folder."""
    # safetensors stores no strides.
    tensors = {name: w.contiguous() for name, w in (weights or model.state_dict()).items()}
    save_file(tensors, folder / _WEIGHTS)
    config = {"kind": kind_of(model), "config": model.cfg.model_dump(mode="json")}
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))


def load_model(folder: Path, device: str | torch.device = "cpu") -> Network:
    """Build the network of a folder, in evaluation mode.

    Raises:
        ContractError: the folder holds something else, or a file of it is damaged.
    """
    with reading(folder / _CONFIG) as path:
        model = build_network(json.loads(path.read_text()))
    with reading(folder / _WEIGHTS) as path:
        model.load_state_dict(load_file(path))
    return model.to(device).eval()


def build_network(document: Mapping[str, Any]) -> Network:
    """Build the network of a `config.json`, with random weights.

    Raises:
        LookupError: the document has no kind or no config.
        ValueError: it has another kind, or a config that is not allowed.
    """
    kind, fields = document["kind"], document["config"]
    if kind == _KINDS[VideoAR]:
        return VideoAR(ModelConfig.model_validate(fields))
    if kind == _KINDS[VideoTokenizer]:
        return VideoTokenizer(TokenizerConfig.model_validate(fields))
    if kind == _KINDS[ClipClassifier]:
        return ClipClassifier(ClassifierConfig.model_validate(fields))
    raise ValueError(f"no such kind of network: {kind!r}")


def load_transformer(
    snapshot: Snapshot, store: Store, device: str | torch.device = "cpu"
) -> tuple[VideoAR, str]:
    """Load the transformer of a `models@1` snapshot, in evaluation mode; return it and its digest.

    Raises:
        ContractError: the snapshot holds something else, or several models.
    """
    return _load(snapshot, store, device, VideoAR)


def load_tokenizer(
    snapshot: Snapshot, store: Store, device: str | torch.device = "cpu"
) -> tuple[VideoTokenizer, str]:
    """Load the tokenizer of a `models@1` snapshot, in evaluation mode; return it and its digest.

    Raises:
        ContractError: the snapshot holds something else, or several models.
    """
    return _load(snapshot, store, device, VideoTokenizer)


def load_classifier(
    snapshot: Snapshot, store: Store, device: str | torch.device = "cpu"
) -> tuple[ClipClassifier, str]:
    """Load the classifier of a `models@1` snapshot, in evaluation mode; return it and its digest.

    Raises:
        ContractError: the snapshot holds something else, or several models.
    """
    return _load(snapshot, store, device, ClipClassifier)


def find_tokenizer(store: Store, model: Snapshot, digest: str | None) -> Snapshot:
    """Return the snapshot of the tokenizer that a transformer was trained on.

    Raises:
        ConfigError: the store has no tokenizer of this digest.
    """
    commits = iter_commits(store.objects)
    ids = dict.fromkeys(commit.snapshot for commit in commits if commit.contract == MODELS)
    for snapshot in map(store.snapshot, ids):
        if digest in snapshot.table(["digest"])["digest"].to_pylist():
            return snapshot
    what = f"its tokenizer {digest} is not in {store.url}"
    raise ConfigError(model.id, what, "use the store that it was trained in")


def _load(
    snapshot: Snapshot, store: Store, device: str | torch.device, expected: type[_N]
) -> tuple[_N, str]:
    rows = snapshot.table(["digest", "files"]).to_pylist()
    if len(rows) != 1:
        raise ContractError(snapshot.id, f"holds {len(rows)} models, not one")
    with Scratch() as folder:
        model = load_model(store.fetch_folder(rows[0]["files"], folder), device)
    if not isinstance(model, expected):
        what = f"holds a {kind_of(model)}, not a {_KINDS[expected]}"
        raise ContractError(snapshot.id, what)
    return model, rows[0]["digest"]


def publish_model(  # noqa: PLR0913 - the columns of `models@1`
    model: Network,
    store: Store,
    *,
    weights: Mapping[str, Tensor],
    step: int,
    metrics: Mapping[str, float],
    history: list[dict[str, float]],
    tokenizer_digest: str | None = None,
    clips: ClipShape | None = None,
) -> pa.Table:
    """Put a network's files into the store and return its row of `models@1`.

    Args:
        model: gives kind, configuration and size.
        store: where the files go.
        weights: what is published, usually the moving average.
        step: optimizer steps taken.
        metrics: final training metrics.
        history: loss curve.
        tokenizer_digest: tokenizer that a transformer was trained on.
        clips: of a transformer.
    """
    with Scratch() as folder:
        save_model(model, folder, weights)
        files = store.publish_folder(folder)
    row = {
        "name": kind_of(model),
        "kind": kind_of(model),
        # Over names and contents of the files, so the same weights and config have the same digest.
        "digest": digest_json([[file["path"], file["sha256"]] for file in files]),
        "config_json": canonical_json(model.cfg.model_dump(mode="json")),
        "files": files,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "step": step,
        "tokenizer_digest": tokenizer_digest,
        "rate_fps": clips and clips.rate_fps,
        "num_frames": clips and clips.num_frames,
        "metrics": list(metrics.items()),
        "history_json": canonical_json(history),
    }
    return pa.Table.from_pylist([row], schema=load_contract(MODELS).arrow_schema)
