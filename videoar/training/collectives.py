"""What the ranks of a gang tell each other: sums, in as few exchanges as there can be.

Without a torch process group a rank is alone, and has nobody to tell. Where a rank dies, the others
find out in their next exchange: that is no fault of theirs, and the engine tries again.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from videoar.core.errors import WorkerLostError, one_line


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add up the values of all ranks, in place; the same sum comes out on each.

    Raises:
        WorkerLostError: another rank is gone.
    """
    if _world_size() > 1:
        with _exchange():
            torch.distributed.all_reduce(values)
    return values


def of_all_ranks(values: Tensor) -> list[Tensor]:
    """Return the values of each rank of a gang.

    Raises:
        ValueError: there is none, no process group was joined.
        WorkerLostError: another rank is gone.
    """
    found = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    with _exchange():
        torch.distributed.all_gather(found, values)
    return found


def sum_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all ranks, in one exchange; a rank without some adds zeros.

    Raises:
        WorkerLostError: another rank is gone.
    """
    if _world_size() == 1:
        return
    learned = [weight for weight in weights if weight.requires_grad]
    gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in learned]
    flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([weight.numel() for weight in learned])
    for weight, part in zip(learned, parts, strict=True):
        weight.grad = part.view_as(weight)


def _world_size() -> int:
    distributed = torch.distributed
    is_gang = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_gang else 1


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL alike
        raise WorkerLostError("a rank", f"lost another one: {one_line(error)}") from error
