"""Options `preset` and a mapping of fields that differ from it; mistakes get the key they are in.

    preset: Annotated[str, preset_name(PRESETS)] = "tiny"
    model: Annotated[dict[str, Any], valid_overrides(PRESETS)] = Field(default_factory=dict)

Both also complete the JSON Schema of the option, from which editors and the reference of stages
know the presets and their fields.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from videoar.core.errors import did_you_mean
from videoar.core.types import Frozen

Shape = TypeVar("Shape", bound=Frozen)


def with_overrides(preset: Shape, overrides: Mapping[str, Any]) -> Shape:
    """Return a preset with other values in some fields, validated as a whole."""
    # not model_copy(update=...), which validates nothing
    return type(preset).model_validate({**preset.model_dump(), **overrides})


@dataclass(frozen=True, eq=False)
class _Checked:
    """Validator and JSON Schema of an option; pydantic calls the two methods."""

    check: Callable[[Any, ValidationInfo], object]
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), **self.schema}


def preset_name(presets: Mapping[str, Frozen]) -> _Checked:
    """Annotate an option that names a preset."""

    def check(name: str, _: ValidationInfo) -> str:
        if name not in presets:
            raise ValueError(f"unknown preset {name} ({did_you_mean(name, presets)})")
        return name

    return _Checked(check, {"enum": list(presets)})


def valid_overrides(presets: Mapping[str, Frozen]) -> _Checked:
    """Annotate an option whose fields override those of the option `preset`, declared before it.

    In its JSON Schema all fields are optional and without a default: the preset has the values.
    """

    def check(overrides: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "preset" in info.data:  # missing where the preset is unknown, which has its own mistake
            with_overrides(presets[info.data["preset"]], overrides)
        return overrides

    # of any of them: all presets of an option are of one class
    shape = next(iter(presets.values())).model_json_schema()
    fields = {
        name: {key: value for key, value in field.items() if key != "default"}
        for name, field in shape["properties"].items()
    }
    return _Checked(check, {"properties": fields, "additionalProperties": False})
