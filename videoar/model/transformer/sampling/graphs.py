"""CUDA graphs: the kernels of a wave are recorded once per shape, then launched together.

One idea: a window (`decoder.Window`) computes on the same tensors in every clip of its shape, so a
record of its kernels generates any other clip once the inputs have been copied into place. A pass
over few tokens has over a thousand kernels of some microseconds each, and launching them one by one
takes several times as long as they run.

    first clip of a shape      kernel by kernel: libraries and compiled parts are loaded
    second clip                each wave is recorded, and replayed at once
    later clips                replayed

A window in use belongs to one clip; another clip of its shape at the same time gets its own. Idle
windows are kept for as long as they fit into `_IDLE_SHARE` of the device's memory.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from videoar.model.transformer.text import Text

_IDLE_SHARE = 0.25  # chosen: the caches of 64 clips of L at 128 px are 8 % of an H200

Replay: TypeAlias = Callable[[], object]
Record: TypeAlias = Callable[[Callable[[], object]], Replay]
"""Records the work of a function without its effect; returns what repeats the work."""


class Inputs(NamedTuple):
    """All that a window of frames is generated from, on the device; of one batch.

    B batch, L tokens that are drawn, K bits, t given latent frames.
    """

    text: Text
    """Rows [0, n) are the prompts, rows [n, 2n) the same ones without text if any is guided."""
    uniform_BLK: Tensor | None
    """A uniform number of every bit that is drawn; None if the likelier value is taken."""
    given: Sequence[Tensor]
    """Per scale bool [B, t, h, w, K] of the frames that are given."""

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        drawn = [] if self.uniform_BLK is None else [self.uniform_BLK]
        return [self.text.features_BPD, self.text.mask_BP, *drawn, *self.given]

    def clone(self) -> "Inputs":
        """Return a copy: later inputs are written over those of a recorded window."""
        text = Text(self.text.features_BPD.clone(), self.text.mask_BP.clone())
        uniform_BLK = None if self.uniform_BLK is None else self.uniform_BLK.clone()
        return Inputs(text, uniform_BLK, [bits.clone() for bits in self.given])


class Recordable(Protocol):
    """A window: what can be recorded."""

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""

    def load(self, inputs: Inputs) -> None:
        """Copy inputs of equal shapes over those before."""

    def run(self, wave: Sequence[int]) -> None:
        """Compute the next wave."""


W = TypeVar("W", bound=Recordable)
Run: TypeAlias = Callable[[Sequence[int]], None]


class Recorded(Generic[W]):
    """A window whose waves are recorded when they first run."""

    def __init__(self, window: W, record: Record) -> None:
        self.window, self._record = window, record
        self._replays: list[Replay] = []
        self._next = 0

    def load(self, inputs: Inputs) -> None:
        """Begin another clip."""
        self.window.load(inputs)
        self._next = 0

    def run(self, wave: Sequence[int]) -> None:
        """Replay the next wave; waves come in the same order in every clip."""
        if self._next == len(self._replays):
            self._replays.append(self._record(partial(self.window.run, wave)))
        self._replays[self._next]()
        self._next += 1


class RecordedWindows(Generic[W]):
    """Recorded windows of one model, by shape.

    Args:
        recorder: returns what records the waves of one window.
        idle_bytes: most memory of windows that no clip uses.
    """

    def __init__(self, recorder: Callable[[], Record], idle_bytes: float) -> None:
        self._recorder, self._idle_bytes = recorder, idle_bytes
        self._seen: set[Hashable] = set()
        self._idle: list[tuple[Hashable, Recorded[W]]] = []  # the last used one is last

    @contextmanager
    def use(
        self, shape: Hashable, inputs: Inputs, make: Callable[[Inputs], W]
    ) -> Iterator[tuple[W, Run]]:
        """Return a window with these inputs for the duration of a clip, and what runs its waves.

        Args:
            shape: all that its kernels depend on, but for the values of the inputs.
            inputs: of the clip.
            make: returns a new window.
        """
        if shape not in self._seen:
            self._seen.add(shape)
            window = make(inputs)
            yield window, window.run
            return
        place = next((i for i, (of, _) in enumerate(self._idle) if of == shape), None)
        if place is None:
            recorded = Recorded(make(inputs.clone()), self._recorder())
        else:
            recorded = self._idle.pop(place)[1]
            recorded.load(inputs)
        try:
            yield recorded.window, recorded.run
        finally:
            self._idle.append((shape, recorded))
            while sum(each.window.num_bytes for _, each in self._idle) > self._idle_bytes:
                self._idle.pop(0)


_WINDOWS: WeakKeyDictionary[nn.Module, RecordedWindows[Any]] = WeakKeyDictionary()


def recorded_windows(model: nn.Module, device: torch.device) -> RecordedWindows[Any] | None:
    """Return the recorded windows of a model; None where it cannot be recorded."""
    # Autocast converts weights in every clip; and training changes them without a new address.
    if device.type != "cuda" or torch.is_autocast_enabled("cuda") or model.training:
        return None
    if model not in _WINDOWS:
        memory = torch.cuda.get_device_properties(device).total_memory
        _WINDOWS[model] = RecordedWindows(_cuda_graphs, _IDLE_SHARE * memory)
    return _WINDOWS[model]


def _cuda_graphs() -> Record:
    """Return what records CUDA graphs that share their memory: they run one after the other."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], object]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, e.g. decode the clip before.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        return graph.replay

    return record
