"""Names that are imported on first use, so that importing a package stays light."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast


def imported(path: str) -> object:
    """Return what `module:name` names."""
    module, _, name = path.partition(":")
    return cast("object", getattr(import_module(module), name))


def lazy_names(package: str, paths: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` (PEP 562) of a package.

    Type checkers need an import of the same names under `if TYPE_CHECKING`, in the form `X as X`,
    which re-exports a name (PEP 484).

    Args:
        package: its name.
        paths: `module:name` of each of its names.
    """

    def attribute(name: str) -> object:
        if name not in paths:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return imported(paths[name])

    return attribute
