"""Training states as folders of safetensors and JSON. No pickle is written or read.

A checkpoint holds all that the next step depends on: weights, optimizer, moving average, position
in the data. A published model (`model_store`) is only a network.

    state.safetensors   tensors by `part/name`, e.g. `net/encoder.conv_in.weight`,
                        `adam/0.exp_avg` (number of the weight), `average/encoder.conv_in.weight`
    progress.json       step, history, position of the loader, and how many tensors each part has

If the training is sharded, each rank writes its rows of every tensor, `state-1-of-4.safetensors`.
A tensor is its pieces one after the other, so any number of ranks can load it, each its own rows.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from videoar.core.errors import ContractError
from videoar.training.parallel import is_sharded, local

_STATE, _PROGRESS = "state.safetensors", "progress.json"
_SIZES, _FILES = "num_tensors", "num_files"

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
        f"{part}/{k}": tensor for part, own in tensors_of.items() for k, tensor in own.items()
    }
    rank, ranks = _place(tensors.values())
    held = {key: local(tensor).contiguous() for key, tensor in tensors.items()
            if isinstance(tensor, DTensor) or rank == 0}  # fmt: skip
    save_file({k: rows for k, rows in held.items() if rows.numel()}, folder / _file(rank, ranks))
    if rank:
        return
    # An optimizer that has not stepped yet has no state. These counts distinguish it from one
    # whose state is missing from the file.
    sizes = {_SIZES: {part: len(own) for part, own in tensors_of.items()}, _FILES: ranks}
    (folder / _PROGRESS).write_text(json.dumps({**progress, **sizes}))


def _place(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Return the number of this rank and of ranks that the tensors are divided over."""
    meshes = (tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor))
    mesh = next(meshes, None)
    return (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())


def _file(rank: int, ranks: int) -> str:
    return _STATE if ranks == 1 else f"state-{rank}-of-{ranks}.safetensors"


def load_state(folder: Path, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Fill the parts in place from a folder that `save_state` wrote; return the progress.

    Raises:
        ContractError: a file is damaged, or does not hold exactly these parts.
    """
    with reading(folder / _PROGRESS) as path:
        progress: dict[str, Any] = json.loads(path.read_text())
        sizes = dict(progress.pop(_SIZES))
        ranks = int(progress.pop(_FILES, 1))
    with reading(folder / _file(0, ranks)), ExitStack() as stack:
        files = []
        for rank in range(ranks):
            with reading(folder / _file(rank, ranks)) as path:
                files.append(stack.enter_context(safe_open(path, "pt")))
        pieces_of: dict[str, dict[str, _Pieces]] = {part: {} for part in parts}
        for file in files:
            keys = file.keys()  # a file is not iterable itself
            for key in keys:
                part, name = key.split("/", 1)
                own = pieces_of.setdefault(part, {}).setdefault(name, _Pieces(key, []))
                own.files.append(file)
        read = {part: len(own) for part, own in pieces_of.items()}
        if read != sizes:
            raise ValueError(f"has tensors {read} of {sorted(parts)}, but {sizes} were written")
        for name, part_now in parts.items():
            _restore(name, part_now, pieces_of[name])
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


@dataclass(frozen=True)
class _Pieces:
    """A tensor in the files of all ranks."""

    key: str
    files: list[Any]
    """Those that hold rows of it, in the order of ranks."""

    def read(self, like: Tensor | None = None) -> Tensor:
        """Return the tensor, or as a DTensor the rows that this rank holds of `like`.

        Raises:
            ValueError: `like` has another shape.
        """
        if like is not None and (shape := self._shape()) != like.shape:  # `copy_` would broadcast
            raise ValueError(f"{self.key} has shape {shape}, expected {tuple(like.shape)}")
        if not isinstance(like, DTensor):
            pieces = [file.get_tensor(self.key) for file in self.files]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        own, mesh = local(like), like.device_mesh
        # FSDP divides like `torch.chunk`: all ranks have as many rows, but for the last ones.
        first = mesh.get_local_rank() * -(-len(like) // mesh.size())
        own = self._rows(first, first + len(own)).to(own)
        return DTensor.from_local(
            own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )

    def _shape(self) -> tuple[int, ...]:
        shapes = [file.get_slice(self.key).get_shape() for file in self.files]
        rows = (sum(shape[0] for shape in shapes),) if shapes[0] else ()
        return (*rows, *shapes[0][1:])

    def _rows(self, first: int, last: int) -> Tensor:
        """Return the rows [first, last); only they are read."""
        pieces, start = [], 0
        for file in self.files:
            piece = file.get_slice(self.key)
            rows = piece.get_shape()[0]
            pieces.append(piece[max(first - start, 0) : max(min(last - start, rows), 0)])
            start += rows
        return torch.cat(pieces)


def _restore(name: str, part: Part, pieces: dict[str, _Pieces]) -> None:
    if isinstance(part, torch.optim.Optimizer):
        _restore_optimizer(part, pieces)
    elif isinstance(part, nn.Module) and not is_sharded(part):
        part.load_state_dict({key: own.read() for key, own in pieces.items()})
    else:
        current = part.state_dict() if isinstance(part, nn.Module) else part
        if unmatched := sorted(pieces.keys() ^ current.keys()):
            key = f"{name}/{unmatched[0]}"
            raise ValueError(f"{key} is in the file or in the network, but not in both")
        with torch.no_grad():
            for key, own in pieces.items():
                local(current[key]).copy_(local(own.read(current[key])))


def _restore_optimizer(optimizer: torch.optim.Optimizer, pieces: dict[str, _Pieces]) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, own in pieces.items():
        index, key_in_state = key.split(".", 1)
        is_counter = key_in_state == "step"  # a scalar
        like = None if is_counter else weights[int(index)]
        state.setdefault(int(index), {})[key_in_state] = own.read(like)
    # The groups stay those of this run: learning rate and decay come from the config, not the file.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
