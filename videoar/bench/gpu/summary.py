"""The result as lines of text: one per case, with its main figures."""

from collections.abc import Iterator
from typing import Any

_LONG = {"host_syncs_at", "curve", "case_s"}


def summary(result: dict[str, Any]) -> Iterator[str]:
    """Yield lines: sections, cases, errors."""
    for letter, section in result["sections"].items():
        title = result["titles"].get(letter, "")
        yield f"{letter} {title}: {section['status']}, {section['seconds']:.0f} s"
        for name, case in section["cases"].items():
            yield f"    {name}: {_figures(case)}"
        for error in section["errors"]:
            yield f"    FAILED {error['case']}: {error['type']}: {error['message'][:300]}"
        if section["skipped"]:
            yield f"    no time for: {'; '.join(section['skipped'])}"


def _figures(case: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in case.items() if key not in _LONG)


def _text(value: Any) -> str:  # noqa: ANN401 - JSON values
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return f"({_figures(value)})"
    return "[" + " ".join(map(_text, value)) + "]" if isinstance(value, list) else str(value)
