"""Collectives between the ranks of a training, each in one exchange.

Without a torch process group a rank is alone and every reduction is the identity. If a rank is
lost, the others fail in their next collective with a retryable error, and the engine restarts all.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from videoar.core.errors import TransientStorageError, WorkerLostError, one_line


def all_reduce_sum(values: Tensor) -> Tensor:
    """Add up the values of all ranks, in place; every rank gets the same sum.

    Raises:
        WorkerLostError: another rank is lost.
    """
    if world_size() > 1:
        with _exchange():
            torch.distributed.all_reduce(values)
    return values


def all_gather(values: Tensor) -> list[Tensor]:
    """Return the values of every rank.

    Raises:
        WorkerLostError: another rank is lost.
    """
    if world_size() == 1:
        return [values]
    result = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    with _exchange():
        torch.distributed.all_gather(result, values)
    return result


def require_same_step(where: str, step: int, device: str | torch.device) -> None:
    """Reject ranks that resumed from different checkpoints.

    Raises:
        TransientStorageError: on all ranks; one was committed while they started.
        WorkerLostError: another rank is lost.
    """
    steps = {int(other) for other in all_gather(torch.tensor([step], device=device))}
    if len(steps) > 1:
        what = f"ranks begin at steps {sorted(steps)}: a checkpoint was committed meanwhile"
        raise TransientStorageError(where, what)


def barrier() -> None:
    """Return once every rank has called this.

    Raises:
        WorkerLostError: another rank is lost.
    """
    if world_size() > 1:
        with _exchange():
            torch.distributed.barrier()


def all_reduce_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all ranks, in one exchange; a rank without gradients adds zeros.

    Not DistributedDataParallel: it averages over ranks and expects a backward pass on each, while
    here every rank scales its loss by its share of the batch, and a rank without rows has none.

    Raises:
        WorkerLostError: another rank is lost.
    """
    if world_size() == 1:
        return
    trained = [weight for weight in weights if weight.requires_grad]
    gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in trained]
    flat = all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([weight.numel() for weight in trained])
    for weight, part in zip(trained, parts, strict=True):
        weight.grad = part.view_as(weight)


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    distributed = torch.distributed
    has_group = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if has_group else 1


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL raise no narrower type for a closed connection
        what = f"lost the connection to another rank: {one_line(error)}"
        raise WorkerLostError("a rank", what) from error


@contextmanager
def exchanging_passes() -> Iterator[None]:
    """Raise a lost connection in passes that exchange weights; other errors stay as they are.

    Raises:
        WorkerLostError: another rank is lost.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            with _exchange():
                raise
        raise
