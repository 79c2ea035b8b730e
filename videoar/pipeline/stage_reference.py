"""Reference of stages for people and programs: every option with type, default, unit and meaning.

    option                    type            default  unit    meaning
    training.phases[].steps   integer >= 1    -        steps   Optimizer steps.

Nothing is written twice: types, bounds and meanings come from the config classes, see `options`.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from videoar.core.errors import one_line
from videoar.core.types import Frozen, Json
from videoar.pipeline.options import Option, options_of
from videoar.pipeline.registry import BUILTIN, Registry, stage_class
from videoar.pipeline.stage import StageConfig


class PortReference(Frozen):
    """One input of a stage."""

    name: str
    contract: str
    optional: bool
    repeatable: bool
    """Whether `NAME` may have further inputs, `NAME.FURTHER`."""


class OptionReference(Frozen):
    """One key under a stage's name in a pipeline file."""

    name: str
    """Key path; `[]` stands for the index of a list."""
    type: str
    """JSON types, such as `number or null`; `enum` for listed choices, `path` for local paths."""
    bounds: str
    """Such as `>= 1`; empty without any."""
    choices: tuple[str, ...]
    """Texts that are allowed, if only these are."""
    required: bool
    default: Any
    """None for required options, and where null is the default."""
    unit: str
    """Such as `s`, `px`, `clips`; `1` for ratios and counts without one; empty for no number."""
    changes_output: bool
    """Whether it is part of the fingerprint: a changed value runs the stage again. Of a path the
    content is, not the path."""
    meaning: str

    @property
    def type_text(self) -> str:
        """Type, choices and bounds in a few words, such as `number (> 0)`."""
        choices = f": {', '.join(self.choices)}" if self.choices else ""
        bounds = f" ({self.bounds})" if self.bounds else ""
        return self.type + choices + bounds

    @property
    def default_text(self) -> str:
        """The default as JSON; empty for null and for an empty text."""
        return "" if self.default in (None, "") else json.dumps(self.default)


class StageReference(Frozen):
    """One stage type."""

    name: str
    shape: Literal["map", "loop", "reduce"]
    meaning: str
    ports: tuple[PortReference, ...]
    produces: str
    """Contract of the snapshot that it makes."""
    options: tuple[OptionReference, ...]


_UNITS = {  # by the last words of a name
    "s": "s", "seconds": "s", "px": "px", "fps": "frames/s", "mib": "MiB", "gib": "GiB",
    "db": "dB", "pixels": "px", "cpus": "cores", "gpus": "GPUs", "prompt": "samples",
    "size": "clips", "source": "clips", "shard": "sources", "every": "steps", "start": "steps",
    "hamming": "bits", "depth": "layers", "width": "channels", "stride": "frames",
    "window": "frames", "accumulate": "parts", "luma": "grey levels", "motion": "grey levels",
}  # fmt: skip
_COUNTED = {
    "bits", "blocks", "buckets", "clips", "errors", "examples", "frames", "groups", "heads",
    "prompts", "readers", "reconstructions", "samples", "scales", "steps", "tokens",
    "validations", "workers",
}  # fmt: skip
_NUMBERS = {"integer", "number"}


def stage_reference(type_name: str, registry: Registry = BUILTIN) -> StageReference:
    """Return the reference of one stage type.

    Raises:
        ConfigError: no stage of this type.
    """
    stage = stage_class(type_name, registry)
    options = _options("", options_of(stage.config_type), {}, changes_output=True)
    return StageReference(
        name=type_name,
        shape=stage.shape,
        meaning=one_line(stage.__doc__ or ""),
        ports=tuple(
            PortReference(name=name, **vars(port)) for name, port in stage.consumes.items()
        ),
        produces=stage.produces,
        # a stable sort: both groups keep the order of the class
        options=tuple(sorted(options, key=_is_common)),
    )


def stage_references(
    names: Sequence[str] = (), registry: Registry = BUILTIN
) -> list[StageReference]:
    """Return the references of stage types in the order of a pipeline; of all without names."""
    return [stage_reference(name, registry) for name in names or registry]


def _is_common(option: OptionReference) -> bool:
    """Return whether every stage has this option; those come last, behind the stage's own."""
    return option.name.partition(".")[0] in StageConfig.model_fields


def _options(
    path: str, parent: Option, defaults: Json, *, changes_output: bool
) -> Iterator[OptionReference]:
    for variant in parent.variants:
        required = variant.get("required", ())
        for key, schema in variant.get("properties", {}).items():
            option = Option(schema, parent.definitions)
            reference = OptionReference(
                name=f"{path}{key}",
                type=option.type_name,
                bounds=option.bounds,
                choices=option.choices,
                required=key in required,
                default=_default(key, option, defaults),
                unit=_unit(key, option),
                # everything below a runtime option is runtime, too
                changes_output=changes_output and not schema.get("runtime"),
                meaning=one_line(schema.get("description", "")),
            )
            yield reference
            counts, default = reference.changes_output, schema.get("default")
            yield from _options(f"{path}{key}.", option, default, changes_output=counts)
            if (entry := option.child(0)) is not None:
                yield from _options(f"{path}{key}[].", entry, None, changes_output=counts)


def _default(key: str, option: Option, defaults: Json) -> Json:
    """Return an option's default; that of the mapping around it wins over the field's own."""
    if isinstance(defaults, dict) and key in defaults:
        value: Json = defaults[key]
        return value
    default: Json = option.schema.get("default")
    return None if isinstance(default, dict) and option.keys else default


def _unit(key: str, option: Option) -> str:
    if not any(variant.get("type") in _NUMBERS for variant in option.variants):
        return ""
    words = key.split("_")
    counted = [word for word in words if word in _COUNTED]
    # `max_clips_per_source` counts clips: the last words "source" and "shard" stand for what is
    # counted
    return _UNITS.get(words[-1]) or (counted[-1] if counted else "1")
