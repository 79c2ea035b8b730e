"""Recycled host memory for batches and row groups.

Allocating a new batch costs more than filling it: the kernel zeroes every new page on first
touch. A pool returns the memory of arrays that nothing refers to any more.
"""

import math
from weakref import finalize

import numpy as np
import torch


class BufferPool:
    """Uint8 tensors whose memory is reused after their last reference is released."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._is_pinned = torch.cuda.is_available()

    def empty(self, *shape: int) -> torch.Tensor:
        """Return an uninitialised uint8 tensor, valid as long as it or a view of it is referenced.

        With a GPU the memory is pinned, so that copies to the device run asynchronously. It then
        comes from torch's own pool of pinned memory: only torch tracks when a copy that was started
        with `non_blocking=True` has finished reading it.
        """
        if self._is_pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        # Powers of two: the last batch of an epoch and row groups have odd sizes, and a free list
        # per exact size would never be used again.
        capacity = 1 << max(0, size - 1).bit_length()
        free = self._free.setdefault(capacity, [])
        try:
            memory = free.pop()
        except IndexError:
            # Not `np.empty`: it requests huge pages, and the kernel takes longer to find them
            # than they save (measured, benchmarks/results/loader.md).
            memory = torch.empty(capacity, dtype=torch.uint8).numpy()
        array = memory[:size].reshape(shape)
        # The tensor holds a reference to `array`, not to `memory`: `array` is freed when the last
        # tensor that shares it is. At exit nothing needs to be recycled.
        finalize(array, free.append, memory).atexit = False
        return torch.from_numpy(array)
