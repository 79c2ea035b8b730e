"""Options `preset` and a mapping of fields that differ from it; mistakes get the key they are in.

    preset: Annotated[str, preset_name(PRESETS)] = "tiny"
    model: Annotated[dict[str, Any], valid_overrides(PRESETS)] = Field(default_factory=dict)

Both also complete the JSON Schema of the option, from which editors and the reference of stages
know the presets and their fields.
"""

from collections.abc import Mapping
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


def preset_name(presets: Mapping[str, Frozen]) -> "_PresetName":
    """Annotate an option that names a preset."""
    return _PresetName(presets)


def valid_overrides(presets: Mapping[str, Frozen]) -> "_ValidOverrides":
    """Annotate an option whose fields override those of the option `preset`, declared before it."""
    return _ValidOverrides(presets)


@dataclass(frozen=True, eq=False)
class _PresetName:
    """Validator and JSON Schema; pydantic calls the two methods with double underscores."""

    presets: Mapping[str, Frozen]

    def __get_pydantic_core_schema__(
        self,
        source: object,
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.presets)}

    def _check(self, name: str) -> str:
        if name not in self.presets:
            raise ValueError(f"unknown preset {name} ({did_you_mean(name, self.presets)})")
        return name


@dataclass(frozen=True, eq=False)
class _ValidOverrides:
    """Validator and JSON Schema; see `_PresetName`."""

    presets: Mapping[str, Frozen]

    def __get_pydantic_core_schema__(
        self,
        source: object,
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the fields of the preset's class, all optional: the preset has the defaults."""
        # any of them: all presets of an option are of one class
        shape = type(next(iter(self.presets.values())))
        full = handler.resolve_ref_schema(handler(shape.__pydantic_core_schema__))
        fields = {
            name: {key: value for key, value in field.items() if key != "default"}
            for name, field in full["properties"].items()
        }
        return {**handler(schema), "properties": fields, "additionalProperties": False}

    def _check(self, overrides: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "preset" in info.data:  # missing where the preset is unknown, which has its own mistake
            with_overrides(self.presets[info.data["preset"]], overrides)
        return overrides
