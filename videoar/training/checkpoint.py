"""Training states as folders of safetensors and JSON. No pickle is written or read.

A checkpoint holds all that the next step depends on: weights, optimizer, moving average, position
in the data. A published model (`model_store`) is only a network.

    state.safetensors   tensors by `part/name`, e.g. `net/encoder.conv_in.weight`,
                        `adam/0.exp_avg` (number of the weight), `average/encoder.conv_in.weight`
    progress.json       step, history, position of the loader, and how many tensors each part has
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoar.core.errors import ContractError

_STATE, _PROGRESS = "state.safetensors", "progress.json"
_SIZES = "num_tensors"

Part: TypeAlias = "nn.Module | torch.optim.Optimizer | dict[str, Tensor]"
"""Something whose tensors a checkpoint holds."""


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Raise whatever the content of a file causes as an error that names the file.

    Raises:
        ContractError: it is missing, damaged, or of another network.
    """
    try:
        yield path
    except torch.OutOfMemoryError:  # the device's fault, not the file's
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        what = textwrap.shorten(f"cannot be used: {type(error).__name__}: {error}", 400)
        hint = "it is damaged or of another network: fetch it again, or train again"
        raise ContractError(str(path), what, hint) from error


def save_state(folder: Path, parts: Mapping[str, Part], progress: Mapping[str, Any]) -> None:
    """Write what training needs to resume.

    Args:
        folder: existing folder.
        parts: by name; names are part of the saved format.
        progress: JSON values: step, position of the loader, history.
    """
    tensors_of = {name: _tensors(part) for name, part in parts.items()}
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part, own in tensors_of.items()
        for name, tensor in own.items()
    }
    save_file(tensors, folder / _STATE)
    # An optimizer that has not stepped yet has no state. These counts distinguish it from one
    # whose state is missing from the file.
    sizes = {_SIZES: {part: len(own) for part, own in tensors_of.items()}}
    (folder / _PROGRESS).write_text(json.dumps({**progress, **sizes}))


def load_state(folder: Path, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Fill the parts in place from a folder that `save_state` wrote; return the progress.

    Raises:
        ContractError: a file is damaged, or does not hold exactly these parts.
    """
    with reading(folder / _PROGRESS) as path:
        progress: dict[str, Any] = json.loads(path.read_text())
        sizes = dict(progress.pop(_SIZES))
    with reading(folder / _STATE) as path:
        tensors_of: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
        for key, tensor in load_file(path).items():
            part, name = key.split("/", 1)
            tensors_of.setdefault(part, {})[name] = tensor
        read = {part: len(own) for part, own in tensors_of.items()}
        if read != sizes:
            raise ValueError(f"has tensors {read} of {sorted(parts)}, but {sizes} were written")
        for name, part_now in parts.items():
            _restore(name, part_now, tensors_of[name])
    return progress


@contextmanager
def restoring(folder: Path, parts: Mapping[str, Part]) -> Iterator[dict[str, Any]]:
    """Fill the parts as `load_state` does; yield the progress.

    Raises:
        ContractError: see `load_state`; or the caller misses a value in the progress.
    """
    progress = load_state(folder, parts)
    with reading(folder / _PROGRESS):
        yield progress


def _tensors(part: Part) -> dict[str, Tensor]:
    if isinstance(part, torch.optim.Optimizer):
        state = part.state_dict()["state"]
        return {f"{i}.{name}": value for i, own in state.items() for name, value in own.items()}
    return dict(part.state_dict() if isinstance(part, nn.Module) else part)


def _restore(name: str, part: Part, tensors: dict[str, Tensor]) -> None:
    if isinstance(part, torch.optim.Optimizer):
        _restore_optimizer(name, part, tensors)
    elif isinstance(part, nn.Module):
        part.load_state_dict(tensors)
    else:
        if unmatched := sorted(tensors.keys() ^ part.keys()):
            raise ValueError(
                f"{name}/{unmatched[0]} is in the file or in the network, but not in both"
            )
        for key, tensor in tensors.items():
            _require_shape(f"{name}/{key}", tensor, part[key])
            part[key].copy_(tensor)


def _restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, key_in_state = key.split(".", 1)
        if value.ndim:  # step counters are scalars
            _require_shape(f"{name}/{key}", value, weights[int(index)])
        state.setdefault(int(index), {})[key_in_state] = value
    # The groups stay those of this run: learning rate and decay come from the config, not the file.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _require_shape(key: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape:  # `copy_` would broadcast it
        raise ValueError(f"{key} has shape {tuple(tensor.shape)}, expected {tuple(like.shape)}")
