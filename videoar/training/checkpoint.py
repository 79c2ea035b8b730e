"""Networks and training states as folders of safetensors and JSON. No pickle anywhere.

A published model is `model.safetensors` + `config.json`, enough to build it; a checkpoint adds the
optimizer and the moving average, enough to go on as if nothing had happened.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoar.contracts.contract import load_contract
from videoar.contracts.names import MODELS
from videoar.core.errors import ContractError
from videoar.core.ids import canonical_json, digest_json
from videoar.core.scratch import Scratch
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_WEIGHTS, _CONFIG, _STATE, _PROGRESS = (
    "model.safetensors", "config.json", "state.safetensors", "progress.json",
)  # fmt: skip
_SIZES = "num_tensors"

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
        ContractError: the folder holds something else, or a file of it is damaged.
    """
    with _reading(folder / _CONFIG) as path:
        config = json.loads(path.read_text())
        kind, fields = config["kind"], config["config"]
        if kind not in ("transformer", "tokenizer"):
            raise ContractError(str(path), f"no such kind of network: {kind!r}")
        shape = (ModelConfig if kind == "transformer" else TokenizerConfig).model_validate(fields)
    model = VideoAR(shape) if isinstance(shape, ModelConfig) else VideoTokenizer(shape)
    with _reading(folder / _WEIGHTS) as path:
        model.load_state_dict(load_file(path))
    return model.to(device).eval()


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Name the file in whatever its content does to its reader.

    Raises:
        ContractError: it is missing, damaged, or that of another network.
    """
    try:
        yield path
    except torch.OutOfMemoryError:  # the device's fault, not the file's
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        what = textwrap.shorten(f"cannot be used: {type(error).__name__}: {error}", 400)
        hint = "it is damaged or another network's: bring it anew, or train again"
        raise ContractError(str(path), what, hint) from error


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
    with Scratch() as folder:
        model = load_model(store.fetch_folder(rows[0]["files"], folder), device)
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
    held = {part: _tensors(holder) for part, holder in parts.items()}
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part, own in held.items()
        for name, tensor in own.items()
    }
    save_file(tensors, folder / _STATE)
    # an optimizer that has not stepped yet holds nothing: only the writer knows it from a lost one
    sizes = {_SIZES: {part: len(own) for part, own in held.items()}}
    (folder / _PROGRESS).write_text(json.dumps({**progress, **sizes}))


def load_state(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the parts in place from a folder that `save_state` wrote; return the progress.

    Raises:
        ContractError: a file is damaged, or does not hold exactly these parts.
    """
    with _reading(folder / _PROGRESS) as path:
        progress: dict[str, Any] = json.loads(path.read_text())
        sizes = dict(progress.pop(_SIZES))
    with _reading(folder / _STATE) as path:
        held: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
        for key, tensor in load_file(path).items():
            part, name = key.split("/", 1)
            held.setdefault(part, {})[name] = tensor
        found = {part: len(own) for part, own in held.items()}
        if found != sizes:
            raise ValueError(f"it has {found} tensors for {sorted(parts)}, {sizes} were written")
        for part, holder in parts.items():
            _restore(part, holder, held[part])
    return progress


def _tensors(holder: Any) -> dict[str, Tensor]:  # noqa: ANN401 - module, optimizer or dictionary
    if isinstance(holder, torch.optim.Optimizer):
        state = holder.state_dict()["state"]
        return {f"{i}.{name}": value for i, own in state.items() for name, value in own.items()}
    return dict(holder.state_dict() if isinstance(holder, nn.Module) else holder)


def _restore(part: str, holder: Any, tensors: dict[str, Tensor]) -> None:  # noqa: ANN401 - see `_tensors`
    if isinstance(holder, torch.optim.Optimizer):
        weights = [weight for group in holder.param_groups for weight in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            if value.ndim:  # steps are scalars
                _require_shape(f"{part}/{key}", value, weights[int(index)])
            state.setdefault(int(index), {})[name] = value
        holder.load_state_dict({**holder.state_dict(), "state": state})
    elif isinstance(holder, nn.Module):
        holder.load_state_dict(tensors)
    else:
        if strange := sorted(tensors.keys() ^ holder.keys()):
            raise ValueError(f"{part}/{strange[0]} is in one of file and network only")
        for name, tensor in tensors.items():
            _require_shape(f"{part}/{name}", tensor, holder[name])
            holder[name].copy_(tensor)


def _require_shape(key: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape:  # `copy_` would broadcast it
        raise ValueError(f"{key} is {tuple(tensor.shape)}, not {tuple(like.shape)}")


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
    with Scratch() as folder:
        save_model(model, folder, weights)
        files = store.publish_folder(folder)
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
    return pa.Table.from_pylist([row], schema=load_contract(MODELS).arrow_schema)
