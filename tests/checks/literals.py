"""Check that store keys and contract ids are spelled in one module each.

    python -m tests.checks.literals

Looks at string constants of the syntax tree, so that docstrings, which explain, are left out.
A key is a constant that begins with a top-level prefix of the store (`tables/`, `f"runs/{id}"`) or
contains a folder of its layout; a contract id is `<name>@<major>` of a contract in `schemas/`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from videoar.contracts import names
from videoar.contracts.contract import contract_ids
from videoar.storage import layout

ROOT = Path(__file__).parents[2]
_HOMES = {"videoar/storage/layout.py", "videoar/contracts/names.py"}


def _strings(module: object) -> set[str]:
    return {value for name, value in vars(module).items() if name.isupper() and type(value) is str}


def _top_folders() -> set[str]:
    """Return the first folder of every key that `layout` makes, without a list of our own."""
    tree = ast.parse((ROOT / "videoar/storage/layout.py").read_text(encoding="utf-8"))
    texts = _strings(layout) | {text for _, text in constants(tree)}
    return {text.partition("/")[0] for text in texts if re.match(r"[a-z]+/", text)}


def constants(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and value of the string constants, parts of f-strings too, but no docstrings."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings:
            yield node.lineno, node.value


def literals(path: str, source: str) -> Iterator[str]:
    """Yield a line per key or contract id that is spelled in a module."""
    key = re.compile(
        rf"(?:{'|'.join(sorted(_top_folders()))})/\S*$|.*/(?:_delta_log|shards)\b|\.rejects$"
    )
    contract = re.compile(rf"(?:{'|'.join(i.partition('@')[0] for i in contract_ids())})@\d+$")
    for line, text in constants(ast.parse(source)):
        if key.match(text):
            yield f"{path}:{line}: {text!r} is a store key (use videoar/storage/layout.py)"
        elif contract.match(text):
            yield f"{path}:{line}: {text!r} is a contract id (use videoar/contracts/names.py)"


def main() -> int:
    """Print what is spelled twice; return 1 if anything is."""
    problems = [f"{name}: not in schemas/" for name in _strings(names) - set(contract_ids())]
    for file in sorted((ROOT / "videoar").rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if path not in _HOMES:
            problems += literals(path, file.read_text(encoding="utf-8"))
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
