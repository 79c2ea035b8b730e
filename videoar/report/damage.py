"""What a page cannot read costs its own part of the page, and is named there."""

from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from videoar.core.errors import ContractError, StorageError, TransientStorageError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DamageLog:
    """Reads the parts of a page, and notes by section what could not be read."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, None]] = {}

    def read(
        self, section: str, part: Callable[_P, Iterable[_T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> tuple[_T, ...]:
        """Return the items of a part up to one that cannot be read; note that one.

        Raises:
            TransientStorageError: the store does not respond.
        """
        items: list[_T] = []
        try:
            # not `extend`: it would lose the items before the error
            for item in part(*args, **kwargs):
                items.append(item)
        except TransientStorageError:
            raise
        except (StorageError, ContractError) as error:
            self.add(section, str(error))
        return tuple(items)

    def add(self, section: str, line: str) -> None:
        """Note a line; one that is known already is not repeated."""
        self._lines.setdefault(section, {})[line] = None

    def lines(self) -> dict[str, tuple[str, ...]]:
        """Return what was noted, by section."""
        return {section: tuple(lines) for section, lines in self._lines.items()}
