"""The result as lines of text: one per case, with its main figures."""

from collections.abc import Iterator
from typing import Any

from videoar.bench.gpu.plan import failed
from videoar.bench.result import BenchResult, compare

_LONG = {"host_syncs_at", "curve", "case_s", "kernels_ms"}


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


def as_bench_result(result: dict[str, Any]) -> BenchResult:
    """Return the result in the form of the other benchmarks; there is no baseline."""
    cases = {
        f"{letter} {name}": {k: float(v) for k, v in case.items() if isinstance(v, int | float)}
        for letter, section in result["sections"].items()
        for name, case in section["cases"].items()
    }
    trained = [case.get("clips_per_s", 0.0) for name, case in cases.items() if name[0] == "c"]
    unit = "clips per second in training, the fastest step"
    return compare(
        "gpu", unit, {"ours": [max(trained, default=0.0)]}, cases=cases, failures=failed(result)
    )


def _figures(case: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in case.items() if key not in _LONG)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return f"({_figures(value)})"
    return "[" + " ".join(map(_text, value)) + "]" if isinstance(value, list) else str(value)
