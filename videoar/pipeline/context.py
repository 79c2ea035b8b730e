"""What an engine provides to a stage beside its inputs: one value instead of hidden globals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from videoar.core.scratch import Scratch
from videoar.storage.partitions import DaskScheduler
from videoar.storage.store import Store

if TYPE_CHECKING:  # decoders load with this module, and planning needs none
    from videoar.media.clip_prefetch import ReaderSlot


@dataclass(frozen=True)
class StageContext:
    """The services that a stage may use in the process that runs it.

    The defaults are those of a single process. An engine that has more to offer passes it here; a
    stage works with either.
    """

    store: Store
    open_reader_slots: "Callable[[], list[ReaderSlot]] | None" = None
    """Start clip readers elsewhere on the cluster; None reads in threads of this process."""
    dask_scheduler: DaskScheduler | None = None
    """Scheduler function for dask graphs; None computes them in this process."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Of a reduction: what `Stage.state` returned when the run decided to execute it."""

    def scratch(self) -> Scratch:
        """Create a private temporary folder, removed when closed or swept after a kill."""
        return Scratch()
