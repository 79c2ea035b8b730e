"""Networks and training states as folders of safetensors and JSON. No pickle anywhere.

A published model is `model.safetensors` + `config.json`, enough to build it; a checkpoint adds the
optimizer and the moving average, enough to go on as if nothing had happened.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoar.contracts.contract import load_contract
from videoar.core.errors import ContractError
from videoar.core.ids import canonical_json, digest_json
from videoar.model.config import ModelConfig
from videoar.model.tokenizer import VideoTokenizer
from videoar.model.tokenizer_config import TokenizerConfig
from videoar.model.transformer import VideoAR
from videoar.storage.store import Store
from videoar.storage.tables import Snapshot

_WEIGHTS, _CONFIG, _STATE, _PROGRESS = (
    "model.safetensors", "config.json", "state.safetensors", "progress.json",
)  # fmt: skip

Network = VideoAR | VideoTokenizer


def kind_of(model: Network) -> str:
    """Return the `kind` column of `models@1`."""
    return "transformer" if isinstance(model, VideoAR) else "tokenizer"


def save_model(model: Network, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a network, by default with its own weights, into an existing folder."""
    tensors = {name: w.contiguous() for name, w in (weights or model.state_dict()).items()}
    save_file(tensors, folder / _WEIGHTS)
    config = {"kind": kind_of(model), "config": model.cfg.model_dump(mode="json")}
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))


def load_model(folder: Path, device: str | torch.device = "cpu") -> Network:
    """Build the network of a folder, in evaluation mode.

    Raises:
        ContractError: the folder holds something else.
    """
    config = json.loads((folder / _CONFIG).read_text())
    if config["kind"] == "transformer":
        model: Network = VideoAR(ModelConfig.model_validate(config["config"]))
    elif config["kind"] == "tokenizer":
        model = VideoTokenizer(TokenizerConfig.model_validate(config["config"]))
    else:
        raise ContractError(str(folder / _CONFIG), f"no such kind of network: {config['kind']!r}")
    model.load_state_dict(load_file(folder / _WEIGHTS))
    return model.to(device).eval()


def load_from(
    snapshot: Snapshot, store: Store, device: str | torch.device = "cpu"
) -> tuple[Network, str]:
    """Load the network of a `models@1` snapshot; return it with its digest.

    Raises:
        ContractError: the snapshot holds no or several models.
    """
    rows = snapshot.table(["digest", "files"]).to_pylist()
    if len(rows) != 1:
        raise ContractError(snapshot.id, f"holds {len(rows)} models, not one")
    with tempfile.TemporaryDirectory(prefix="videoar-model-") as folder:
        model = load_model(store.fetch_folder(rows[0]["files"], Path(folder)), device)
    return model, rows[0]["digest"]


def load_transformer(
    snapshot: Snapshot, store: Store, device: str | torch.device = "cpu"
) -> tuple[VideoAR, str]:
    """Load a transformer and its digest.

    Raises:
        ContractError: the snapshot holds something else.
    """
    model, digest = load_from(snapshot, store, device)
    if not isinstance(model, VideoAR):
        raise ContractError(snapshot.id, "holds a tokenizer, not a transformer")
    return model, digest


def load_tokenizer(
    snapshot: Snapshot, store: Store, device: str | torch.device = "cpu"
) -> tuple[VideoTokenizer, str]:
    """Load a tokenizer and its digest.

    Raises:
        ContractError: the snapshot holds something else.
    """
    model, digest = load_from(snapshot, store, device)
    if not isinstance(model, VideoTokenizer):
        raise ContractError(snapshot.id, "holds a transformer, not a tokenizer")
    return model, digest


def save_state(folder: Path, parts: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Write what training needs to go on.

    Args:
        folder: existing folder.
        parts: name to module, optimizer or plain dictionary of tensors.
        progress: JSON values: step, loader position, history.
    """
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part, holder in parts.items()
        for name, tensor in _tensors(holder).items()
    }
    save_file(tensors, folder / _STATE)
    (folder / _PROGRESS).write_text(json.dumps(progress))


def load_state(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the parts in place from a folder that `save_state` wrote; return the progress."""
    tensors = load_file(folder / _STATE)
    for part, holder in parts.items():
        own = {
            k.removeprefix(f"{part}/"): v for k, v in tensors.items() if k.startswith(f"{part}/")
        }
        _restore(holder, own)
    progress: dict[str, Any] = json.loads((folder / _PROGRESS).read_text())
    return progress


def _tensors(holder: Any) -> dict[str, Tensor]:  # noqa: ANN401 - module, optimizer or dictionary
    if isinstance(holder, torch.optim.Optimizer):
        state = holder.state_dict()["state"]
        return {f"{i}.{name}": value for i, own in state.items() for name, value in own.items()}
    return dict(holder.state_dict() if isinstance(holder, nn.Module) else holder)


def _restore(holder: Any, tensors: dict[str, Tensor]) -> None:  # noqa: ANN401 - see `_tensors`
    if isinstance(holder, torch.optim.Optimizer):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        holder.load_state_dict({**holder.state_dict(), "state": state})
    elif isinstance(holder, nn.Module):
        holder.load_state_dict(tensors)
    else:
        for name, tensor in tensors.items():
            holder[name].copy_(tensor)


def publish_model(  # noqa: PLR0913 - the columns of `models@1`
    model: Network,
    store: Store,
    *,
    weights: Mapping[str, Tensor],
    step: int,
    metrics: Mapping[str, float],
    history: list[dict[str, float]],
    tokenizer_digest: str | None = None,
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
    """
    with tempfile.TemporaryDirectory(prefix="videoar-model-") as folder:
        save_model(model, Path(folder), weights)
        files = store.publish_folder(Path(folder))
    row = {
        "name": kind_of(model),
        "kind": kind_of(model),
        "digest": digest_json([[file["path"], file["sha256"]] for file in files]),
        "config_json": canonical_json(model.cfg.model_dump(mode="json")),
        "files": files,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "step": step,
        "tokenizer_digest": tokenizer_digest,
        "metrics": list(metrics.items()),
        "history_json": canonical_json(history),
    }
    return pa.Table.from_pylist([row], schema=load_contract("models@1").arrow_schema)
