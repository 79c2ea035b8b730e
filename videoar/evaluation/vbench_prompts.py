"""The official prompts of VBench: what to generate, and under which names VBench looks for it.

946 entries of 944 prompts; two stand in two entries each. VBench evaluates videos 0 to 4 of each
prompt; its static filter chooses among 25 for `temporal_flickering`.

Source: VBench 0.1.5 vbench/VBench_full_info.json, vbench/__init__.py (`build_full_info_json`).
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json, seed_from
from videoar.core.types import Row

SUITE = Path(__file__).with_name("vbench_full_info.json")
NUM_SAMPLES, NUM_FLICKERING = 5, 25


@cache
def entries() -> tuple[Row, ...]:
    """Return the entries: prompt_en, dimension (a list) and often auxiliary_info."""
    return tuple(json.loads(SUITE.read_text(encoding="utf-8")))


@cache
def suite_digest() -> str:
    """Return the digest of the entries."""
    return digest_json(list(entries()))


@cache
def prompts() -> dict[str, frozenset[str]]:
    """Return the dimensions of each prompt, in the order of the entries."""
    found: dict[str, frozenset[str]] = {}
    for entry in entries():
        prompt = entry["prompt_en"]
        found[prompt] = found.get(prompt, frozenset()) | set(entry["dimension"])
    return found


def video_name(prompt: str, index: int) -> str:
    """Return the file name under which VBench looks for a sample."""
    return f"{prompt}-{index}.mp4"


def video_names(dimension: str) -> list[str]:
    """Return the names of the videos that a dimension is evaluated on."""
    of_dimension = [prompt for prompt, names in prompts().items() if dimension in names]
    return [video_name(prompt, i) for prompt in of_dimension for i in range(NUM_SAMPLES)]


def plan(
    samples: int = NUM_SAMPLES,
    flickering: int = NUM_SAMPLES,
    seed: int = 0,
    rewritten: Path | None = None,
) -> Iterator[Row]:
    """Yield rows of `prompts@1`, one per sample to generate: 4,720 by default.

    Args:
        samples: of each prompt.
        flickering: of each prompt of `temporal_flickering`, at least `samples`.
        seed: of all samples; each has its own.
        rewritten: text file with a prompt to generate from for each of the 946 entries, in their
            order. The original prompt remains the id of the prompt, and the name of its videos.

    Raises:
        ConfigError: the file has another number of lines, or an empty one.
    """
    texts = _rewritten(rewritten) if rewritten else {}
    for prompt, dimensions in prompts().items():
        is_flickering = "temporal_flickering" in dimensions
        for index in range(max(samples, flickering) if is_flickering else samples):
            own = seed_from("vbench", seed, prompt, index)
            text = texts.get(prompt, prompt)
            yield {"prompt_id": prompt, "prompt": text, "label": None, "index": index, "seed": own}


def _rewritten(path: Path) -> dict[str, str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from error
    if len(lines) != len(entries()) or not all(lines):
        what = f"has {sum(map(bool, lines))} prompts, {len(entries())} are needed"
        raise ConfigError(str(path), what, "one per line, in the order of VBench_full_info.json")
    # reversed: of a prompt with two entries, the first rewriting counts
    return dict(zip((e["prompt_en"] for e in reversed(entries())), reversed(lines), strict=True))
