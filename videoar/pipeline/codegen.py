"""Write what derives from the stages: `python -m videoar.pipeline.codegen [--check]`.

`pipelines/STAGES.md` is the reference of stages for people, `pipelines/pipeline.schema.json` the
JSON Schema of a pipeline file, with which editors complete keys and underline mistakes.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videoar.contracts.generated import DRAFT, markdown_row, write_or_check
from videoar.core.errors import one_line
from videoar.core.names import NAME_PATTERN
from videoar.core.types import Json
from videoar.pipeline.options import Schema, options_of
from videoar.pipeline.registry import BUILTIN, Registry, stage_class
from videoar.pipeline.stage_reference import (
    OptionReference,
    PortReference,
    StageReference,
    stage_references,
)
from videoar.pipeline.trigger import Schedule

_FOLDER = Path(__file__).parents[2] / "pipelines"
_NAME = {"pattern": NAME_PATTERN}
_MARKS = {"runtime", "publish_gate"}
_COLUMNS = "| option | type | default | unit | meaning |"


def stages_page(references: list[StageReference]) -> str:
    """Return the Markdown page of all stages."""
    lines = ["# Stages", "", "Generated from the stages' classes; do not edit.", ""]
    lines += ["Beside its options each stage takes `stage` (its type) and `from` (ports to inputs"]
    lines += ["or stages). `[]` in a name stands for the index of a list. Another value of an"]
    lines += ["option marked with `*` does not run the stage again; of a path, other content does."]
    lines += [""]
    first = references[0].options
    # compared with default and bounds: an option that a stage declares differently stays in its
    # table
    shared = [option for option in first if all(option in r.options for r in references)]
    for reference in references:
        lines += _section(reference, [o for o in reference.options if o not in shared])
    lines += ["## Options of every stage", "", *_table(shared)]
    return "\n".join(lines)


def _section(reference: StageReference, options: list[OptionReference]) -> list[str]:
    ports = ", ".join(f"`{port.name}` ({port.contract}{_note(port)})" for port in reference.ports)
    lines = [f"## {reference.name}", "", reference.meaning, ""]
    lines += [f"Shape: {reference.shape}. From: {ports}. Makes: {reference.produces}.", ""]
    return [*lines, *_table(options)] if options else lines


def _note(port: PortReference) -> str:
    further = f", further ones as `{port.name}.NAME`" if port.repeatable else ""
    return (", optional" if port.optional else "") + further


def _table(options: list[OptionReference]) -> list[str]:
    return [_COLUMNS, "|---|---|---|---|---|", *map(_row, options), ""]


def _row(option: OptionReference) -> str:
    default = f"`{option.default_text}`" if option.default_text else ""
    default = "required" if option.required else default
    mark = "" if option.changes_output else " *"
    cells = (f"`{option.name}`{mark}", option.type_text, default, option.unit, option.meaning)
    return markdown_row(cells)


def pipeline_schema(registry: Registry = BUILTIN) -> dict[str, Any]:
    """Return the JSON Schema of a pipeline file."""
    definitions: dict[str, Any] = {"stage": _any_stage(registry)}
    for type_name in registry:
        schema, own = _stage_schema(type_name, registry)
        definitions |= {type_name: schema, **own}
    schedule = options_of(Schedule)
    definitions |= {name: _plain(own) for name, own in schedule.definitions.items()}
    stages = {"$ref": "#/$defs/stage"}
    return {
        "$schema": DRAFT,
        "title": "VideoAR pipeline",
        "type": "object",
        "properties": {
            "pipeline": {"type": "string", "description": "Name of the pipeline.", **_NAME},
            "description": {"type": "string"},
            "only_if_new": {
                "type": "string",
                "description": "Listed input: a run without new sources in it skips all stages.",
                **_NAME,
            },
            "inputs": _mapping("Names to folders or URLs.", _input()),
            "stages": {**_mapping("Names to stages.", stages), "minProperties": 1},
            **_plain(schedule.schema["properties"]),
        },
        "required": ["pipeline", "inputs", "stages"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _mapping(description: str, values: Schema) -> dict[str, Any]:
    names = {"propertyNames": _NAME}
    return {
        "type": "object", "description": description, **names, "additionalProperties": values,
    }  # fmt: skip


def _input() -> dict[str, Any]:
    kinds = (
        "A folder, file://, s3://, rendered://, ref:// or snapshot:// (/PORT of a parent,"
        " ?optional=true)."
    )
    return {
        "type": "string",
        "description": kinds,
        "minLength": 1,
        # what a pattern can express of `input_url`: no ~, no `file:x`, no credentials before an @
        "not": {"pattern": "^~|^file:(?!//)|^[a-z0-9+.-]+://[^/]*@"},
    }


def _any_stage(registry: Registry) -> dict[str, Any]:
    """Choose the schema by the key `stage`: with `oneOf`, one mistake would fail all stages."""
    return {
        "type": "object",
        "required": ["stage"],
        "properties": {"stage": {"enum": list(registry)}},
        "allOf": [
            {
                # without `required`, `if` would also hold for a mapping that has no `stage`
                "if": {"properties": {"stage": {"const": name}}, "required": ["stage"]},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name in registry
        ],
    }


def _stage_schema(type_name: str, registry: Registry) -> tuple[dict[str, Any], dict[str, Any]]:
    stage = stage_class(type_name, registry)
    options = options_of(stage.config_type)
    consumes = stage.consumes.items()
    takes = {n: {"type": "string", "description": f"Takes {p.contract}."} for n, p in consumes}
    ports: dict[str, Any] = {
        "type": "object",
        "description": "Ports to inputs or stages.",
        "properties": takes,
        "required": [name for name, port in consumes if not port.optional],
        "additionalProperties": False,
    }
    if repeatable := {rf"^{n}\.[^.]+$": takes[n] for n, port in consumes if port.repeatable}:
        ports["patternProperties"] = repeatable
    schema = {
        "description": one_line(stage.__doc__ or ""),
        "type": "object",
        "properties": {
            "stage": {"const": type_name},
            "from": ports,
            # merged and not referenced: `additionalProperties` ignores the properties of a `$ref`
            **_plain(options.schema["properties"]),
        },
        "required": ["stage", "from", *options.schema.get("required", ())],
        "additionalProperties": False,
    }
    return schema, {name: _plain(own) for name, own in options.definitions.items()}


def _plain(schema: Schema) -> dict[str, Any]:
    """Return a schema without our marks and the titles that pydantic makes of names."""
    is_titled = isinstance(schema.get("title"), str)
    left_out = _MARKS | {"title"} if is_titled else _MARKS
    kept = {key: _plain_part(value) for key, value in schema.items() if key not in left_out}
    text = kept.get("description")  # in `properties` it may be the name of an option
    return kept | ({"description": one_line(text)} if isinstance(text, str) else {})


def _plain_part(part: Json) -> Json:
    if isinstance(part, list):
        return [_plain_part(item) for item in part]
    return _plain(part) if isinstance(part, dict) else part


def generated_files() -> dict[str, str]:
    """Return the content of every generated file, by its name in the folder of pipelines."""
    return {
        "STAGES.md": stages_page(stage_references()),
        "pipeline.schema.json": json.dumps(pipeline_schema(), indent=1) + "\n",
    }


def main(arguments: list[str], write: Callable[[str], object]) -> int:
    """Write the generated files, or with `--check` list the stale ones; return an exit code."""
    return write_or_check("videoar.pipeline.codegen", _FOLDER, generated_files(), arguments, write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stderr.write))
