"""`--set a.b=value`: other values for keys of a pipeline file, applied before it is validated.

The type of the key decides how the value is read. Text keys (inputs, ports, stage types, options
that are text) take it verbatim: `#`, quotes and `007` are ordinary characters of a path. Every
other key takes one YAML value.
"""

from collections.abc import Mapping
from typing import Any

from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.types import Json
from videoar.core.yaml_file import parse_value
from videoar.pipeline.options import Option, options_of
from videoar.pipeline.registry import Registry, stage_class

_SECTIONS = ("inputs", "stages")
_ONLY_IF_NEW = "only_if_new"


def apply_override(
    document: dict[str, Any], override: str, source: str, registry: Registry
) -> None:
    """Change one key of a document in place.

    Args:
        document: a pipeline as data.
        override: `a.b=value`; entries of lists are addressed by their index, from 0.
        source: the document's file, for messages.
        registry: known stages.

    Raises:
        ConfigError: there is no such key, or the value does not fit its type.
    """
    # at the first =: a value may contain more of them, such as s3://bucket/day=1
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if equals and keys == [_ONLY_IF_NEW]:
        document[_ONLY_IF_NEW] = None if value == "null" else value
        return
    if not equals or not all(keys) or len(keys) < 2:
        what = "not of the form a.b=value"
        raise ConfigError(f"--set {override}", what, "e.g. inputs.videos=PATH")
    where = f"--set {path}"
    parent = _parent(document, keys, where, source)
    _set(parent, keys, _read(value, _option(document, keys, registry), where), where, source)


def _parent(document: dict[str, Any], keys: list[str], where: str, source: str) -> object:
    if keys[0] not in _SECTIONS:
        raise ConfigError(where, f"{source} has no {keys[0]}", did_you_mean(keys[0], _SECTIONS))
    node: Any = document
    for depth, key in enumerate(keys[:-1]):
        if isinstance(node, list):
            node = node[_index(node, key, where, source)]
            continue
        if not isinstance(node, dict):
            raise ConfigError(where, f"{'.'.join(keys[:depth])} is not a mapping in {source}")
        # inside a stage, mappings that the file leaves out are added: stages.x.resources.cpus=2
        if key not in node and depth < 2:
            raise ConfigError(where, f"{source} has no {key}", did_you_mean(key, map(str, node)))
        node = node.setdefault(key, {})
    return node


def _set(parent: object, keys: list[str], value: Json, where: str, source: str) -> None:
    key = keys[-1]
    if isinstance(parent, list):
        parent[_index(parent, key, where, source)] = value
    elif not isinstance(parent, dict):
        raise ConfigError(where, f"{'.'.join(keys[:-1])} is not a mapping in {source}")
    elif len(keys) == 2 and key not in parent:
        # a new input would feed nothing: the run would silently use the file's own
        raise ConfigError(where, f"{source} has no {key}", did_you_mean(key, map(str, parent)))
    else:
        parent[key] = value


def _index(entries: list[Any], key: str, where: str, source: str) -> int:
    if not key.isdecimal() or int(key) >= len(entries):
        hint = f"0 to {len(entries) - 1}" if entries else "it is empty"
        raise ConfigError(where, f"{key} is not an index of the list in {source}", hint)
    return int(key)


def _option(document: Mapping[str, Any], keys: list[str], registry: Registry) -> Option:
    """Return what the value at a key path has to be; anything where that is not known."""
    if keys[0] == "inputs" or keys[2:3] == ["stage"] or (keys[2:3] == ["from"] and len(keys) == 4):
        return Option({"type": "string"}, {})
    stage = document["stages"].get(keys[1])
    type_name = stage.get("stage") if isinstance(stage, dict) else None
    if len(keys) < 3 or not isinstance(type_name, str) or type_name not in registry:
        return Option({}, {})
    return options_of(stage_class(type_name, registry).config_type).at(keys[2:]) or Option({}, {})


def _read(value: str, option: Option, where: str) -> Json:
    if not option.is_text:
        if not value.strip():
            raise ConfigError(where, "has no value", f"must be {option.describe()}")
        return parse_value(value, where)
    # null is the one word that is not taken verbatim: nothing else could unset a text
    return None if value == "null" and option.is_nullable else value
