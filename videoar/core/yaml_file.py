"""YAML files that people write: one mapping of JSON values, or one line that names file and line.

Only PyYAML's parser is used, not its constructor, which keeps the last of two equal keys, builds
dates, sets and bytes that JSON does not have, merges mappings (`<<`), expands aliases without a
limit ("billion laughs") and raises RecursionError at 1,000 levels of nesting. The parser's events
become values here, within fixed limits.

A plain value that YAML 1.1 and 1.2 read differently is rejected instead of guessed:

    ref: no              false in YAML 1.1, text in YAML 1.2
    seed: 010            8 in YAML 1.1, 10 in YAML 1.2
    day: 2026-01-31      a date in YAML 1.1, text in YAML 1.2

The exception is `1e-4`, which is text in YAML 1.1 and a number here as in YAML 1.2.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import yaml

from videoar.core.errors import ConfigError
from videoar.core.printable import printable
from videoar.core.types import Json

MAX_BYTES = 256 << 10
"""Chosen: 80 times the longest pipeline file here; PyYAML parses that much in 1 to 3 s."""
MAX_DEPTH = 64
"""Chosen: pipeline files nest 6 levels; Python's recursion limit is at about 900 of ours."""
MAX_VALUES = 50_000
"""Values in a document, each expansion of an alias counted again. Chosen: 20 bytes a value cannot
exceed it within `MAX_BYTES` by much, nine levels of nine aliases (387 million values) do."""

_VALUE_CHARS = 20
"""Characters of an aliased text that count as one value, so that long texts multiply as little."""
_SHOWN_CHARS = 60
_CONSTANTS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True)
_CONSTANTS |= dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_OTHER_NUMBER = re.compile(r"0o[0-7]+|[-+]?0[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
"""Numbers of YAML 1.2 that YAML 1.1 reads as text: `0o17`, `08`."""
_QUOTE = "put it in quotes if it is text"
_DECIMAL = ("is not a plain decimal number", f"write it in decimal; {_QUOTE}")
_AMBIGUOUS = {  # YAML 1.1 types that PyYAML's resolver gives to plain scalars: what is wrong, hint
    "tag:yaml.org,2002:timestamp": ("is a date in YAML 1.1, text in YAML 1.2", _QUOTE),
    "tag:yaml.org,2002:bool": (
        "is a boolean in YAML 1.1, text in YAML 1.2",
        f"write true or false; {_QUOTE}",
    ),
    "tag:yaml.org,2002:int": _DECIMAL,
    "tag:yaml.org,2002:float": _DECIMAL,
    "tag:yaml.org,2002:merge": ("merges mappings, which is not supported", "write the keys out"),
    "tag:yaml.org,2002:value": ("is a special key in YAML 1.1", _QUOTE),
}
_RESOLVER = yaml.SafeLoader("")


class _RejectedError(Exception):
    """What is wrong with a document, and in which line; 0 for the document as a whole."""

    def __init__(self, line: int, what: str, hint: str = "") -> None:
        super().__init__(line, what, hint)
        self.line, self.what, self.hint = line, what, hint


def read_mapping(path: Path, hint: str) -> dict[str, Any]:
    """Read a file whose content is a mapping of JSON values.

    Args:
        path: a UTF-8 file, with or without a byte order mark.
        hint: what to write at its start, for a file that contains something else.

    Raises:
        ConfigError: it cannot be read, is not YAML, is not JSON data, is no mapping, or is larger
            than the limits of this module. The error's `where` is `file:line`.
    """
    try:
        with path.open("rb") as file:  # bounded, so that /dev/zero and huge files end here too
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        what = getattr(error, "strerror", None) or str(error)
        raise ConfigError(printable(str(path)), f"cannot be read: {what}") from error
    return parse_mapping(content, str(path), hint)


def parse_mapping(content: bytes, where: str, hint: str) -> dict[str, Any]:
    """Parse the content of a file; see `read_mapping`."""
    where = printable(where)
    try:
        value = _document(_decoded(content)).value
    except _RejectedError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(where + line, error.what, error.hint) from None
    if not isinstance(value, dict):
        raise ConfigError(where, "is empty" if value is None else "not a mapping", hint)
    return value


def parse_value(text: str, where: str) -> Json:
    """Parse one value: a scalar or a flow collection, with nothing after it.

    A comment is rejected as well: `/data/my clips #2` would lose its end.

    Raises:
        ConfigError: it is anything else; `where` is in the error.
    """
    where = printable(where)
    if len(text) > MAX_BYTES:
        raise ConfigError(where, f"is longer than {MAX_BYTES >> 10} KiB")
    try:
        document = _document(text)
    except _RejectedError as error:
        raise ConfigError(where, error.what, error.hint) from None
    if document.is_block:
        hint = "write {key: value} or [value, value]"
        raise ConfigError(where, f"{_shown(text)} is not a single value", hint)
    rest = text[document.end :].strip()
    if rest:
        raise ConfigError(where, f"{_shown(text)} has {_shown(rest)} after the value", _QUOTE)
    return document.value


def _decoded(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise _RejectedError(0, f"is larger than {MAX_BYTES >> 10} KiB", "is it a YAML file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _RejectedError(line, "not UTF-8 text", "save the file as UTF-8") from None


_Node: TypeAlias = yaml.ScalarEvent | yaml.CollectionStartEvent


@dataclass(frozen=True)
class _Document:
    value: Json
    end: int
    """Index of the character after the value."""
    is_block: bool
    """Whether the value is a collection in block style, one entry a line."""


def _document(text: str) -> _Document:
    try:
        return _Builder(yaml.parse(text, yaml.SafeLoader)).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"character {_shown(chr(error.character))} is not allowed in YAML"
        raise _RejectedError(line, what, "remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "indent with spaces" if "'\\t'" in (error.problem or "") else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        line = mark.line + 1 if mark else 0
        raise _RejectedError(line, f"not YAML: {printable(what)}", hint) from None
    except (ValueError, OverflowError) as error:
        # PyYAML does not catch errors of chr() for "\U00110000" and int() for a 5,000-digit %YAML
        raise _RejectedError(0, f"not YAML: {error}") from None


class _Builder:
    """Turns the parser's events into JSON values; recursion is bounded by `MAX_DEPTH`."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._anchors: dict[str | None, Json] = {}
        self._count = 0
        self._last = yaml.Event()

    def document(self) -> _Document:
        """Return the only document of the stream."""
        next(self._events)  # StreamStart
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return _Document(None, 0, is_block=False)
        first = next(self._events)
        value = self._value(first, 1)
        end = self._last.end_mark
        next(self._events)  # DocumentEnd
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise _RejectedError(_line(following), "a second document starts", "keep one per file")
        is_block = isinstance(first, yaml.CollectionStartEvent) and not first.flow_style
        return _Document(value, end.index if end else 0, is_block=is_block)

    def _value(self, event: yaml.Event, depth: int) -> Json:
        self._count_values(event, depth)
        self._last = event
        if isinstance(event, yaml.AliasEvent):
            return self._copy(self._target(event), event, depth)
        node = cast("_Node", event)  # the grammar of events allows nothing else here
        if node.tag is not None:
            what = f"tag {_shown(node.tag)} is not supported"
            raise _RejectedError(_line(node), what, "remove it")
        self._anchors.pop(node.anchor, None)  # `&a [*a]`: an alias inside its own anchor finds none
        value = self._content(node, depth)
        if node.anchor is not None:
            self._anchors[node.anchor] = value
        return value

    def _content(self, node: _Node, depth: int) -> Json:
        if isinstance(node, yaml.ScalarEvent):
            return _scalar(node)
        if isinstance(node, yaml.MappingStartEvent):
            return self._dict(depth)
        values: list[Json] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, depth + 1))
        self._last = event
        return values

    def _dict(self, depth: int) -> dict[str, Json]:
        values: dict[str, Json] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, depth + 1)
            if key in values:
                raise _RejectedError(_line(event), f"key {_shown(key)} given twice", "remove one")
            values[key] = self._value(next(self._events), depth + 1)
        self._last = event
        return values

    def _key(self, event: yaml.Event, depth: int) -> str:
        if isinstance(event, yaml.CollectionStartEvent):
            raise _RejectedError(_line(event), "a key is a collection", "keys are text")
        key = self._value(event, depth)
        if not isinstance(key, str):
            written = _shown(getattr(event, "value", ""))
            raise _RejectedError(_line(event), f"key {written} is not text", "put it in quotes")
        return key

    def _target(self, event: yaml.AliasEvent) -> Json:
        if event.anchor not in self._anchors:
            what = f"alias *{_shown(event.anchor or '')} has no anchor before it"
            raise _RejectedError(_line(event), what)
        return self._anchors[event.anchor]

    def _copy(self, value: Json, event: yaml.Event, depth: int) -> Json:
        """Copy an alias's target: overrides change documents in place, one use without another."""
        if isinstance(value, str):
            self._count_values(event, depth, len(value) // _VALUE_CHARS)
        if isinstance(value, dict):
            self._count_values(event, depth, len(value) + sum(map(len, value)) // _VALUE_CHARS)
            return {key: self._copy(item, event, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            self._count_values(event, depth, len(value))
            return [self._copy(item, event, depth + 1) for item in value]
        return value

    def _count_values(self, event: yaml.Event, depth: int, count: int = 1) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            hint = "aliases count for all that they stand for"
            raise _RejectedError(_line(event), f"has more than {MAX_VALUES:,} values", hint)
        if depth > MAX_DEPTH:
            raise _RejectedError(_line(event), f"is nested more than {MAX_DEPTH} levels deep")


def _scalar(event: yaml.ScalarEvent) -> str | int | float | bool | None:
    text: str = event.value
    if not event.implicit[0]:  # quoted or a block scalar: text, whatever it looks like
        return _checked(text, event)
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text, event)
    if _NUMBER.fullmatch(text):
        return _finite(float(text), text, event)
    if _NOT_FINITE.fullmatch(text):
        return _finite(math.inf, text, event)
    _require_text(text, event)
    return _checked(text, event)


def _require_text(text: str, event: yaml.Event) -> None:
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    problem = _DECIMAL if _OTHER_NUMBER.fullmatch(text) else _AMBIGUOUS.get(tag)
    if problem:
        what, hint = problem
        raise _RejectedError(_line(event), f"{_shown(text)} {what}", hint)


def _integer(text: str, event: yaml.Event) -> int:
    # 20 characters hold every 64-bit integer; int() of 4,301 digits raises ValueError
    value = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise _RejectedError(_line(event), f"{_shown(text)} does not fit in 64 bits")
    return value


def _finite(value: float, text: str, event: yaml.Event) -> float:
    if not math.isfinite(value):
        what = f"{_shown(text)} is not a finite number"
        raise _RejectedError(_line(event), what, "JSON has none")
    return value


def _checked(text: str, event: yaml.Event) -> str:
    try:
        # JSON writes U+1F600 as "\ud83d\ude00", which PyYAML leaves as two halves: join them
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        what = f"{_shown(text)} contains a lone surrogate"
        raise _RejectedError(_line(event), what, "write the character itself") from None


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark else 0


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
    return printable(short)
