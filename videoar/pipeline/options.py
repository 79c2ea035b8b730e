"""The options of a stage as a tree: types, bounds, defaults and meanings, by key path.

Everything is read from the JSON Schema that pydantic derives from the stage's config class, so that
`--set`, error lines, the reference of stages and the editor's schema cannot disagree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from videoar.core.types import Frozen

Schema = Mapping[str, Any]
"""A JSON Schema."""
_BASE_TYPES = {
    "integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
    "null": "null", "object": "a mapping", "array": "a list",
}  # fmt: skip
_BOUNDS = (
    ("exclusiveMinimum", "> {}"),
    ("minimum", ">= {}"),
    ("exclusiveMaximum", "< {}"),
    ("maximum", "<= {}"),
    ("multipleOf", "multiple of {}"),
)


@dataclass(frozen=True)
class Option:
    """One option, or the value at any key path below it."""

    schema: Schema
    definitions: Mapping[str, Schema] = field(repr=False)
    """What `$ref` in the schema refers to."""

    @property
    def variants(self) -> tuple[Schema, ...]:
        """The alternatives of a union, with references resolved; one if it is none.

        All methods below iterate over these, so that unions need no other special case.
        """
        return tuple(self._flat(self.schema))

    def _flat(self, schema: Schema) -> Iterator[Schema]:
        if "$ref" in schema:
            yield from self._flat(self.definitions[schema["$ref"].rpartition("/")[2]])
        elif "anyOf" in schema or "oneOf" in schema:  # pydantic: plain and discriminated unions
            for variant in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
                yield from self._flat(variant)
        else:
            yield schema

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the options of a mapping; empty where any key is allowed, or none."""
        return tuple(key for variant in self.variants for key in variant.get("properties", {}))

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that are allowed, where they are listed."""
        return tuple(text for variant in self.variants for text in _choices(variant))

    @property
    def is_text(self) -> bool:
        """Whether every value is text, or null."""
        kinds = {variant.get("type") for variant in self.variants}
        return "string" in kinds and kinds <= {"string", "null"}

    @property
    def is_nullable(self) -> bool:
        """Whether null is allowed."""
        return any(variant.get("type") == "null" for variant in self.variants)

    @property
    def type_name(self) -> str:
        """The JSON types that are allowed, such as `number or null`, and `enum` and `path`."""
        # unions of several number ranges repeat a type; a dict keeps the order, a set does not
        return " or ".join(dict.fromkeys(map(_type_name, self.variants)))

    @property
    def bounds(self) -> str:
        """The limits of numbers, such as `> 0 and <= 1`; empty without any."""
        return " or ".join(filter(None, dict.fromkeys(map(_bounds, self.variants))))

    def child(self, key: str | int) -> "Option | None":
        """Return the option under a key of a mapping, or at an index of a list, if there is one."""
        for variant in self.variants:
            schema = _child_schema(variant, key)
            if schema is not None:
                return Option(schema, self.definitions)
        return None

    def at(self, path: Sequence[str | int]) -> "Option | None":
        """Return the option at a key path."""
        option: Option | None = self
        for key in path:
            option = option.child(key) if option else None
        return option

    def describe(self) -> str:
        """Return what a value has to be, such as `a number > 0 or null`."""
        texts = dict.fromkeys(self._describe(variant) for variant in self.variants)
        return " or ".join(texts)

    def _describe(self, schema: Schema) -> str:
        if _choices(schema):
            return f"one of {', '.join(_choices(schema))}"
        kind = schema.get("type")
        if kind == "array":
            return self._describe_list(schema)
        if schema.get("format") == "path":
            return "a path"
        return f"{_BASE_TYPES.get(str(kind), 'any value')} {_bounds(schema)}".strip()

    def _describe_list(self, schema: Schema) -> str:
        if "prefixItems" in schema:
            entries = [Option(item, self.definitions).describe() for item in schema["prefixItems"]]
            return f"a list of {len(entries)} values, each {entries[0]}"
        least = f" of at least {schema['minItems']}" if "minItems" in schema else ""
        if not schema.get("items"):
            return f"a list{least}"
        entry = Option(schema["items"], self.definitions).describe()
        return f"a list{least}, each entry {entry}"


def _choices(schema: Schema) -> tuple[str, ...]:
    # a Literal of one value is `const`
    return tuple(map(str, schema.get("enum", [schema["const"]] if "const" in schema else ())))


def _type_name(schema: Schema) -> str:
    if _choices(schema):
        return "enum"
    return "path" if schema.get("format") == "path" else str(schema.get("type", "any"))


def _bounds(schema: Schema) -> str:
    texts = [text.format(f"{schema[key]:,}") for key, text in _BOUNDS if key in schema]
    if schema.get("minLength") == 1:
        texts.append("that is not empty")
    return " and ".join(texts)


def _child_schema(schema: Schema, key: str | int) -> Schema | None:
    child: Schema | None = None
    if key in schema.get("properties", {}):
        child = schema["properties"][key]
    elif isinstance(schema.get("additionalProperties"), dict):
        child = schema["additionalProperties"]
    # `--set` addresses list entries by indices that are text
    elif schema.get("type") == "array" and str(key).isdecimal():
        prefix = schema.get("prefixItems", [])
        child = prefix[int(key)] if int(key) < len(prefix) else schema.get("items")
    return child


@lru_cache(maxsize=64)
def options_of(config_type: type[Frozen]) -> Option:
    """Return the options of a stage, or of another part of a pipeline file, as one mapping."""
    schema = config_type.model_json_schema()
    return Option(schema, schema.get("$defs", {}))
