"""Files that derive from the code: written, or compared with what is in the repository."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def markdown_row(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    # chr(92) is a backslash: before Python 3.12 the expression of an f-string cannot contain one
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def stale_files(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Return the names of the files that are missing or differ."""
    return [
        name
        for name, text in texts.items()
        if not (folder / name).is_file() or (folder / name).read_text() != text
    ]


def write_or_check(
    module: str,
    folder: Path,
    texts: Mapping[str, str],
    arguments: list[str],
    write: Callable[[str], object],
) -> int:
    """Write the stale files; with `--check` only list them.

    Args:
        module: whose command this is.
        folder: of the files.
        texts: content of every file by name.
        arguments: of the command.
        write: receives lines for people.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    is_check = parser.parse_args(arguments).check
    stale = stale_files(folder, texts)
    for name in stale:
        if is_check:
            write(f"error: {folder.name}/{name}: stale (run python -m {module})\n")
        else:
            (folder / name).write_text(texts[name])
            write(f"wrote {folder.name}/{name}\n")
    return 3 if is_check and stale else 0
