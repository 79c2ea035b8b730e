"""A listing of the crash points of a package, from its source files."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class CrashPoint(NamedTuple):
    """One call of `crash_point`."""

    name: str
    """`VIDEOAR_CRASH_AT=<name>` kills the process there."""
    module: str


def crash_points(package: str = "videoar") -> list[CrashPoint]:
    """Return the calls of `crash_point` in a package, sorted by name.

    Raises:
        ValueError: a name is not a literal, or is used twice: it would not say which line.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package}: no such package")
    root, found = Path(spec.submodule_search_locations[0]), dict[str, CrashPoint]()
    for path in sorted(root.rglob("*.py")):
        module = ".".join((package, *path.relative_to(root).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "crash_point"):
                continue
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if not isinstance(name, str) or name in found:
                raise ValueError(f"{module}, line {node.lineno}: not a literal name of its own")
            found[name] = CrashPoint(name, module)
    return sorted(found.values())
