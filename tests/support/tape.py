"""A CUDA graph without a GPU: a record of the operations on tensors, which can be repeated."""

from collections.abc import Callable
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records operations and the tensors that they read and write."""

    def __init__(self):
        super().__init__()
        self.operations, self.overwritten = [], []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert operation is not torch.ops.aten._local_scalar_dense.default, "reads from the device"
        for argument, value in zip(operation._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.overwritten += [(each, each.clone()) for each in tree_leaves(value)]
        result = operation(*args, **kwargs)
        is_memory = "empty" in operation.__name__ or operation.is_view
        if not is_memory:
            self.operations.append((partial(operation, *args, **kwargs), result))
        return result

    def undo(self):
        for tensor, before in reversed(self.overwritten):
            tensor.copy_(before)
        self.overwritten.clear()

    def replay(self):
        for operation, results in self.operations:
            again = operation()
            for result, value in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(result, torch.Tensor) and result is not value:
                    result.copy_(value)


def record(work: Callable[[], object]) -> Callable[[], object]:
    """Record as `videoar.model.transformer.sampling.graphs` expects it, without an effect."""
    with Tape() as tape:
        work()
    tape.undo()
    return tape.replay
