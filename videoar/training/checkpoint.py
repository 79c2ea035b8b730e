"""Training states as folders of safetensors and JSON. No pickle anywhere.

A checkpoint holds all that the next step depends on: weights, optimizer, moving average, position
in the data. A published model (`model_store`) is only a network.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoar.core.errors import ContractError

_STATE, _PROGRESS = "state.safetensors", "progress.json"
_SIZES = "num_tensors"


@contextmanager
def reading(path: Path) -> Iterator[Path]:
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
    with reading(folder / _PROGRESS) as path:
        progress: dict[str, Any] = json.loads(path.read_text())
        sizes = dict(progress.pop(_SIZES))
    with reading(folder / _STATE) as path:
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
