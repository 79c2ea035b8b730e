"""What is wrong with a pipeline file, in plain sentences, each with its key path.

pydantic reports one error per alternative of a union and repeats the whole input; here each key
gets one sentence about what it has to be:

    stages.model.training.phases.0.step: unknown key (did you mean steps?)
    stages.clips.keep: must be one of clips, references, not "clip" (did you mean clips?)
    stages.clips.rate_fps: must be a number > 0 and <= 120 or null, not -1
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from videoar.core.errors import ConfigError, did_you_mean, one_line
from videoar.core.printable import printable
from videoar.core.redact import redact
from videoar.core.types import Json
from videoar.pipeline.options import Option

_SHOWN_CHARS = 60  # chosen: leaves room for key and reason on a line of 120
_MESSAGE_CHARS = 400  # chosen: pydantic quotes the input in some messages, of any length
Path = tuple[str | int, ...]
"""Keys of mappings and indices of lists, from the outside in."""


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a pipeline file."""

    path: str
    message: str


class SpecError(ConfigError):
    """A pipeline file that cannot be used; `mistakes` has all of them."""

    def __init__(self, where: str, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        lines = [f"{m.path}: {m.message}" if m.path else m.message for m in mistakes]
        super().__init__(where, f"\n{where}: ".join(lines))
        # unpickling calls the class with `args`: by default those of the base, which do not fit
        # __init__
        self.args = (where, self.mistakes)


def shown(value: Json) -> str:
    """Return a value for a message, without secrets: itself if short, else its kind and size."""
    text = redact(json.dumps(value, ensure_ascii=False))
    if len(text) <= _SHOWN_CHARS:
        return printable(text)
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)} keys"
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    return f"a list of {len(value)} entries" if isinstance(value, Sequence) else printable(text)


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Return the sentence about a key that does not exist."""
    return f"unknown key ({did_you_mean(key, known)})" if known else "unknown key"


def explain(
    error: ValidationError, path: str, options: Option, value: Json, also: Sequence[str] = ()
) -> list[Mistake]:
    """Return the mistakes in a mapping of options.

    Args:
        error: of pydantic, for this mapping.
        path: key path of the mapping in the file; empty for the file itself.
        options: what the mapping may contain.
        value: what it contains.
        also: keys that belong beside the options, to suggest them as well.
    """
    sentences = _sentences(error, options, value, also)
    mistakes = (
        Mistake(".".join(filter(None, [path, *map(str, keys)])), _limited(text))
        for keys, text in sentences
    )
    return list(dict.fromkeys(mistakes))  # alternatives of a union give the same sentence


def _sentences(
    error: ValidationError, options: Option, value: Json, also: Sequence[str] = ()
) -> Iterator[tuple[Path, str]]:
    details = error.errors(include_url=False)
    for detail in details:
        if detail["type"] == "too_short" and _has_inner(detail["loc"], details):
            continue  # pydantic counts valid entries only, and the invalid ones are listed
        keys, kind = _keys(detail["loc"], value), detail["type"]
        inner = detail.get("ctx", {}).get("error")
        if kind == "missing":
            # `_keys` drops it, as the document does not have it
            keys = (*keys, detail["loc"][-1])
        option, given = options.at(keys), _at(value, keys)
        if isinstance(inner, ValidationError):  # a validator that validates another model
            nested = _sentences(inner, option or Option({}, {}), given)
            yield from ((keys + rest, text) for rest, text in nested)
        elif kind == "extra_forbidden":
            beside = also if len(keys) == 1 else ()
            yield keys, _unknown(str(keys[-1]), options.at(keys[:-1]), beside)
        elif kind == "missing":
            yield keys, _missing(option)
        elif inner is not None or option is None:
            yield keys, one_line(inner or detail["msg"])
        else:
            yield keys, _wrong(option, given)


def _has_inner(location: Path, details: Sequence[ErrorDetails]) -> bool:
    depth = len(location)
    return any(len(d["loc"]) > depth and d["loc"][:depth] == location for d in details)


def _keys(location: Sequence[str | int], value: Json) -> Path:
    """Return the part of pydantic's location that is in the document.

    The rest names alternatives of unions and validators, such as `function-before[...]`.
    """
    keys: list[str | int] = []
    for key in location:
        if isinstance(value, Mapping) and key in value:
            value = value[str(key)]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            continue
        keys.append(key)
    return tuple(keys)


def _at(value: Json, keys: Path) -> Json:
    node: Any = value
    for key in keys:
        if isinstance(node, list):  # pydantic names the entry that a short tuple lacks
            node = node[int(key)] if int(key) < len(node) else None
        else:
            node = node.get(key)
    result: Json = node
    return result


def _unknown(key: str, parent: Option | None, also: Sequence[str]) -> str:
    known = [*(parent.keys if parent else ()), *also]
    # `steps` beside `training` instead of in it: no spelling is close, but the place is known
    children = {name: parent.child(name) for name in known} if parent else {}
    homes = [name for name, child in children.items() if child and key in child.keys]
    if homes:
        return f"unknown key (it is an option of {homes[0]})"
    return unknown_key(key, known)


def _missing(option: Option | None) -> str:
    meaning = one_line(option.schema.get("description", "")) if option else ""
    return f"missing ({meaning.partition('. ')[0].rstrip('.')})" if meaning else "missing"


def _wrong(option: Option, value: Json) -> str:
    text = f"must be {option.describe()}, not {shown(value)}"
    close = get_close_matches(value, option.choices, n=1) if isinstance(value, str) else []
    return f"{text} (did you mean {close[0]}?)" if close else text


def _limited(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MESSAGE_CHARS else text[: _MESSAGE_CHARS - 3] + "..."
