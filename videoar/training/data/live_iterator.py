"""Loaders belong to the process that trains, and have one live iterator.

A loader's position is one number, which `state_dict` returns. Workers of a torch `DataLoader` would
each count on their own, and the copy in the process that saves the state would never move; two
iterators would move it by turns. Loaders read ahead in threads, so workers would gain nothing.
"""

from collections.abc import Callable
from typing import NoReturn

from torch.utils.data import get_worker_info

from videoar.core.errors import ConfigError

_HINT = "iterate the loader itself: it reads ahead in threads"


def require_main_process(hint: str = _HINT) -> None:
    """Raise in a worker of a `DataLoader`.

    Raises:
        ConfigError: this process is one.
    """
    if get_worker_info() is not None:
        what = "cannot be shared by the workers of a DataLoader, which would yield every row again"
        raise ConfigError("loader", what, hint)


class LiveIterator:
    """Base of loaders that iterate from a position and move it."""

    _newest: object = None

    def _begin(self) -> Callable[[], None]:
        """Begin an iteration; return what raises as soon as it is not the newest one any more.

        Raises:
            ConfigError: in a worker of a `DataLoader`.
        """
        require_main_process()
        self._newest = own = object()

        def require_newest() -> None:
            if self._newest is not own:
                what = "another iterator was begun, or a position set, since this one began"
                raise ConfigError("loader", what, "one iterator at a time, or a loader for each")

        return require_newest

    def __getitem__(self, _index: object) -> NoReturn:
        """Raise: a `DataLoader` takes whatever is not an `IterableDataset` for a list of items.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("loader", "yields batches in one order, and has no items", _HINT)
