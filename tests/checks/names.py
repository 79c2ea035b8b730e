"""Check that names and phrases that were replaced do not come back.

    python -m tests.checks.names

A definition is a function, class, parameter, attribute, variable or import alias. An entry may be
limited to a part of the tree by a path prefix, where the word is fine elsewhere. Uses of a name
need no check of their own: without its definition they fail.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_OWN = {Path(__file__).relative_to(ROOT).as_posix(), "tests/unit/checks/test_names.py"}

DEFINITIONS = {
    "Accelerator": "DeviceQueue",
    "Derive": "Requantize",
    "Excerpt": "DecodedClip",
    "Note": "Tombstone",
    "Painter": "FrameResizer",
    "Patience": "NonFiniteGuard",
    "Repeated": "DuplicateKey",
    "Scanner": "SandboxedDecoder",
    "StoreRank": "StoreRankContext",
    "StoredClips": "ClipCache",
    "Tick": "SampledFrame",
    "UNITS_AHEAD": "PREFETCH_ROW_GROUPS",
    "Verdict": "Prediction",
    "_BATCHES_A_LOOKUP": "METADATA_BATCHES",
    "_BATCHES_FROM_FAR": "REMOTE_PREFETCH_BATCHES",
    "_BROKEN_S": "BODY_RETRY_S",
    "_Canvas": "_SampleState",
    "_Critic": "discriminator",
    "_LEFT_AFTER_S": "STALE_TEMP_S",
    "NOTES": "WITHDRAWN_PREFIX",
    "_Reading": "SourceDecoder",
    "_Suspicion": "candidate",
    "_afterwards": "_publish_results",
    "_drive": "_execute",
    "_expire": "_kill_on_timeout",
    "_fill": "_read_exactly",
    "_follow": "_exit_with_parent",
    "_forget": "_evict",
    "_leave_out": "_skip",
    "_likeness": "similarity",
    "_may_miss": "_max_skipped",
    "_obituary": "_exit_error",
    "_remember": "_finish_step",
    "_renew_page": "_rerender_report",
    "_settle_gate": "_apply_promotion",
    "_told": "_as_storage_error",
    "_whole": "_read_all",
    "admit": "detect_demuxer",
    "after_each_scale": "per_scale_reconstructions",
    "ahead": "prefetch",
    "derive_bits": "requantize",
    "every_commit": "iter_commits",
    "give_back": "release",
    "grey": "luma",
    "make_explanation": "videoar.api",
    "numbered": "log_entry_key",
    "odds": "log_odds",
    "of_all_ranks": "all_gather",
    "read_unit": "read_row_group",
    "refused": "rejected",
    "remember": "log_metrics",
    "repeated_keys": "duplicate_keys",
    "sees": "mask_mod",
    "split_done": "split_by_record",
    "sum_gradients": "all_reduce_gradients",
    "sum_over_ranks": "all_reduce_sum",
    "teacher_inputs": "teacher_forcing_inputs",
    "videoar/contracts/:Gate": "TableChecks",
    "videoar/contracts/:suites": "expectations",
    "videoar/curation/:close": "semantic_pairs",
    "videoar/curation/:links": "near_duplicate_pairs",
    "videoar/curation/:resolve": "pick_representatives",
    "videoar/curation/:verdict": "evaluate",
    "videoar/evaluation/:judge": "classify",
    "videoar/media/:Change": "Transition",
    "videoar/media/:facts": "columns",
    "videoar/media/:see": "add",
    "videoar/media/:settle": "flush",
    "videoar/media/:still": "thumbnail_jpeg",
    "videoar/model/:fitted": "for_clip_shape",
    "videoar/model/:written": "sampled",
    "videoar/pipeline/:Share": "DeviceUsage",
    "videoar/pipeline/:Task": "StageTask",
    "videoar/pipeline/presets.py:changed": "with_overrides",
    "videoar/pipeline/presets.py:fitting": "valid_overrides",
    "videoar/pipeline/presets.py:known": "preset_name",
    "videoar/pipeline/fingerprint.py:parts": "fingerprint_parts",
    "videoar/pipeline/work/:parts": "fingerprint_parts",
    "videoar/pipeline/:take": "acquire",
    "videoar/pipeline/:turn": "acquire",
    "videoar/runner/:parts": "fingerprint_parts",
    "videoar/runner/:why": "reason_to_run",
    "videoar/storage/:each": "map_partitions",
    "videoar/storage/:lost": "missing_files",
    "videoar/storage/:paired": "all_pairs",
    "videoar/storage/:pick": "copy_from_row_groups",
    "videoar/storage/:profiled": "score_columns",
    "videoar/storage/:unit": "row_group",
    "videoar/training/:critic": "discriminator",
    "videoar/training/:visit": "row_group_access",
    "videoar/:lane": "reader slot, stratum or edge track",
    "videoar/:take_down": "an alias; use videoar.api",
}
"""Old definition -> what replaces it. Constants without their underscore count as well."""

PHRASES = {
    r"gone on from|goes on as it would have": "resumed from / resumes deterministically",
    r"on their way": "in flight",
    r"\banew\b": "again, rewritten",
    r"for good\b": "permanently",
    r"\bfar store\b|\bfrom far\b": "remote store",
    r"[Ww]hoever comes second": "the loser of the race adopts the winner's record",
    r"from the dead": "released on process exit",
    r"[Tt]urns at the accelerator": "Serializes device access across concurrent shards",
    r"[Ll]anes that are actors": "Remote clip readers as Ray actors",
    r"engine without an engine": "In-process engine",
    r"ranks of a gang tell": "Collectives",
    r"nothing is left is a finding": "An empty output is valid",
    r"who waits": "no personification",
    r"\bobituar": "no personification",
    r"\bthe dead\b": "no personification",
    r"\brefused rows\b|\brows (?:were|that were) refused\b": "rejected rows",
    r"\brendered corpus\b": "synthetic corpus",
    r"\bbits are fed to training\b": "latents are, bits are rebuilt",
}
"""Phrase (regular expression) -> what to write instead."""

_TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".json"}


def definitions(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that a module defines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield getattr(node, "lineno", 0), node.asname


def old_names(path: str, source: str) -> Iterator[str]:
    """Yield a line per definition that has an old name."""
    for line, name in definitions(source):
        for entry, now in DEFINITIONS.items():
            prefix, _, old = entry.rpartition(":")
            if path.startswith(prefix) and name in {old, f"_{old}"}:
                yield f"{path}:{line}: {name} is now: {now}"


def old_phrases(path: str, text: str) -> Iterator[str]:
    """Yield a line per phrase that was replaced."""
    for number, line in enumerate(text.splitlines(), 1):
        for phrase, now in PHRASES.items():
            if match := re.search(phrase, line):
                yield f"{path}:{number}: '{match[0]}': write: {now}"


def main() -> int:
    """Print what is old; return 1 if there is any."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    problems: list[str] = []
    for path in listed:
        file = ROOT / path
        if file.suffix not in _TEXT or not file.is_file() or path in _OWN:
            continue
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".py" and path.startswith("videoar/"):
            problems += old_names(path, text)
        problems += old_phrases(path, text)
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
