"""Fingerprints: a digest of everything that a stage's output depends on.

The parts are stored beside the digest, so that `explain` can list which of them differ. Worker
counts, paths of the store, retries, secrets, time and host are not among them.

The code part is the digest of the stage's *code closure*: every module of this package that the
stage's module imports, directly or not, as syntax trees without docstrings. A comment or a
docstring never invalidates data; any other change of an imported module does. Packages below the
stages that only move bytes (`core`, `contracts`, `storage`, `pipeline`) are left out: the contract
and the layout version pin what they write.
"""

import ast
import hashlib
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from videoar.contracts.contract import load_contract
from videoar.core.ids import canonical_json, digest_json, sha256_hex
from videoar.core.types import Json
from videoar.pipeline.stage import Inputs, Shard, Stage

FingerprintParts = dict[str, Any]
_PACKAGE = __name__.partition(".")[0]
_PLUMBING = frozenset({"core", "storage", "pipeline", "contracts"})
"""Subpackages that only move bytes. Matched by whole name: `storage_x` would be code in reach."""
_ROOT = Path(__file__).parent.parent
_SHARD = "shard"
"""Name of the part that only shards have; a run always has parts before and after it."""
_CODE_DIGEST = 12  # chosen: 48 bits are enough to notice an edit, and stay readable in `explain`


def compute_parts(
    stage: Stage[Any], inputs: Inputs, state: Mapping[str, str] | None = None
) -> FingerprintParts:
    """Return the parts of a stage run's fingerprint as JSON values.

    Args:
        stage: the stage with its options.
        inputs: snapshots by port. Their digests count, not their ids: equal content is equal input.
        state: what `Stage.state` returns.
    """
    return {
        **({"state": dict(state)} if state else {}),
        "stage": stage.name,
        "version": stage.version,
        "code": code_closure(type(stage).__module__),
        "config": stage.config.semantic(),
        "inputs": {port: snapshot.digest for port, snapshot in sorted(inputs.items())},
        # the content, too: a schema file can change without a new id
        "contract": {
            stage.produces: digest_json(load_contract(stage.produces).model_dump(mode="json"))
        },
        "tools": dict(stage.tools()),
    }


def fingerprint(fingerprint_parts: FingerprintParts) -> str:
    """Return the digest of a fingerprint's parts."""
    return digest_json(fingerprint_parts)


class ShardFingerprints:
    """Fingerprints of the shards of a stage run.

    Each has the digest of the shard in place of those of the `sharded` inputs, and of files in
    place of them, so that new data costs new shards only.
    """

    def __init__(self, fingerprint_parts: FingerprintParts, sharded: Collection[str]) -> None:
        others = {
            part: {name: of for name, of in fingerprint_parts[part].items() if name not in sharded}
            for part in ("inputs", "tools")
        }
        common = {**fingerprint_parts, **others}
        # a shard adds one entry: what comes before it and after it is written and hashed once
        before = canonical_json({name: of for name, of in common.items() if name < _SHARD})
        self._after = canonical_json({name: of for name, of in common.items() if name > _SHARD})
        self._before = hashlib.sha256(f'{before[:-1]},"{_SHARD}":'.encode())
        self.group = digest_json(common)
        """Digest of what all shards have in common."""

    def of(self, shard: Shard) -> str:
        """Return the fingerprint of a shard: digest of the common parts and its own."""
        digest = self._before.copy()
        digest.update(f"{canonical_json(shard.digest)},{self._after[1:]}".encode())
        return digest.hexdigest()


def differences(old: FingerprintParts, new: FingerprintParts) -> list[dict[str, Any]]:
    """Return the leaves in which two fingerprints differ, as {component, old, new}."""
    before, after = _leaves(old), _leaves(new)
    return [
        {"component": key, "old": before.get(key), "new": after.get(key)}
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


# {"config": {"crf": 12}, "inputs": {}} -> {"config.crf": 12}; a list is one leaf
def _leaves(value: Json, path: str = "") -> dict[str, Json]:
    if not isinstance(value, Mapping):
        return {path: value}
    leaves: dict[str, Json] = {}
    for key, item in value.items():
        leaves |= _leaves(item, f"{path}.{key}" if path else str(key))
    return leaves


@lru_cache(maxsize=64)
def code_closure(module: str, root: Path = _ROOT) -> dict[str, str]:
    """Return module name -> digest of its syntax tree, for a module and all that it imports.

    Args:
        module: dotted name of the first module.
        root: folder of the package.
    """
    digests: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        package = name.removeprefix(f"{_PACKAGE}.").partition(".")[0]
        if name in digests or package in _PLUMBING:
            continue
        path = _source(name, root)
        if path is not None:
            digests[name], imports = _module(path)
            queue += imports
    return dict(sorted(digests.items()))


@lru_cache(maxsize=1024)  # the stages of a pipeline have most of their modules in common
def _module(path: Path) -> tuple[str, list[str]]:
    """Return the digest of a module, and what it imports."""
    # parsed, not imported: planning must load neither torch nor Ray
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = _imports(tree)
    # no line numbers are dumped, so reformatted code keeps its digest. The text differs between
    # Python versions (3.13 omits empty fields): another interpreter recomputes.
    return sha256_hex(ast.dump(_without_docstrings(tree)).encode())[:_CODE_DIGEST], imports


def _source(name: str, root: Path) -> Path | None:
    """Return the file of one of our modules or packages; None for a name inside a module.

    Found by path: the import system would import the parent packages, and torch with them.
    """
    stem = root.joinpath(*name.split(".")[1:])
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        # walk, not the top level only: stages import their workers inside functions
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        # `from videoar.media import decode` may import a module or a name; `_source` drops the
        # names
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == _PACKAGE and name != _PACKAGE]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # any text that stands alone: Python itself knows no docstrings of attributes
            kept = [item for item in body if not _is_text(item)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
