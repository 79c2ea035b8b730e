"""Options `preset` and a mapping of changes to it: mistakes are named under the key they are in."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationInfo

from videoar.core.types import Frozen

Shape = TypeVar("Shape", bound=Frozen)


def changed(preset: Shape, changes: Mapping[str, Any]) -> Shape:
    """Return a preset with other values in some fields, checked as a whole."""
    return type(preset).model_validate({**preset.model_dump(), **changes})


def known(presets: Mapping[str, Frozen]) -> Callable[[str], str]:
    """Return a validator of the name of a preset."""

    def check(name: str) -> str:
        if name not in presets:
            raise ValueError(f"{name!r} is unknown; there are {sorted(presets)}")
        return name

    return check


def fitting(
    presets: Mapping[str, Frozen],
) -> Callable[[dict[str, Any], ValidationInfo], dict[str, Any]]:
    """Return a validator of changes to the option `preset`, which comes before them."""

    def check(changes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "preset" in info.data:  # it is missing where it is unknown, which has been said
            changed(presets[info.data["preset"]], changes)
        return changes

    return check
