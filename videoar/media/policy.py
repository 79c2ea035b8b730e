"""Which clips are good enough: a pure function of stored scores and a policy.

Scores are facts written once by ingest; a policy is a set of bounds. A new policy therefore decides
again without decoding a frame, and the verdict is the same on any machine. Near-duplicates are
found here too, from stored hashes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from videoar.core.types import Frozen

SCORE_MISSING = "SCORE_MISSING"
DUPLICATE_EXACT = "DUPLICATE_EXACT"
DUPLICATE_NEAR = "DUPLICATE_NEAR"
_FRAME_SLACK = 2  # containers announce up to two frames that no decoder shows
_HAMMING = 6
_BANDS = 4
_SAME_START_US = 250_000


class Policy(Frozen):
    """Bounds on scores; null switches a bound off.

    The motion and blur floors stand for "the lowest 2 % of the corpus": they are written down as
    numbers (from a profile), since a percentile of the batch at hand would let one new source flip
    the verdict on another.
    """

    min_short_side_px: int | None = 128
    min_source_fps: float | None = 12.0
    max_source_fps: float | None = 120.0
    min_duration_s: float | None = 2.0
    max_duration_s: float | None = 20.0
    min_decoded_share: float | None = 0.98
    max_decode_errors: int | None = 0
    min_luma: float | None = 16.0
    max_luma: float | None = 235.0
    max_black_frac: float | None = 0.1
    max_freeze_frac: float | None = 0.2
    max_letterbox_frac: float | None = 0.35
    min_motion: float | None = 0.03  # the 2nd percentile of 1432 UCF-101 clips
    min_blur: float | None = 20.0  # chosen: only pictures without any detail


POLICIES: Mapping[str, Policy] = {
    "default": Policy(),
    "permissive": Policy(
        min_short_side_px=64,
        min_source_fps=8.0,
        min_duration_s=None,
        min_decoded_share=None,
        min_luma=None,
        max_luma=None,
        max_freeze_frac=None,
        max_letterbox_frac=None,
        min_motion=0.04,  # chosen: above a held picture, below the stillest person on camera
        min_blur=None,
    ),
}
_RULES = (  # reason, score, bound; the order is that of the reasons
    ("SHORT_SIDE", "short_side_px", "min_short_side_px"),
    ("FPS_LOW", "src_rate_fps", "min_source_fps"),
    ("FPS_HIGH", "src_rate_fps", "max_source_fps"),
    ("CLIP_SHORT", "duration_s", "min_duration_s"),
    ("CLIP_LONG", "duration_s", "max_duration_s"),
    ("TRUNCATED", "decoded_share", "min_decoded_share"),
    ("DECODE_ERRORS", "decode_errors", "max_decode_errors"),
    ("BLACK", "black_frac", "max_black_frac"),
    ("FROZEN", "freeze_frac", "max_freeze_frac"),
    ("LOW_MOTION", "motion_mean", "min_motion"),
    ("DARK", "luma_mean", "min_luma"),
    ("BRIGHT", "luma_mean", "max_luma"),
    ("LETTERBOX", "letterbox_frac", "max_letterbox_frac"),
    ("BLURRED", "blur_p10", "min_blur"),
)
REASONS = (*(rule[0] for rule in _RULES), SCORE_MISSING, DUPLICATE_EXACT, DUPLICATE_NEAR)
COLUMNS = (
    "clip_id",
    "source_id",
    "source_uri",
    "src_width_px",
    "src_height_px",
    "src_rate_fps",
    "expected_frames",
    "decoded_frames",
    "decode_errors",
    "span_start_us",
    "num_frames",
    "rate_fps",
    "luma_mean",
    "black_frac",
    "freeze_frac",
    "blur_p10",
    "motion_mean",
    "letterbox_frac",
    "phash",
)
"""Columns of `clips@1` that verdicts are made from."""


def verdict(scores: Mapping[str, Any], policy: Policy) -> tuple[bool, list[str]]:
    """Decide on one clip.

    Args:
        scores: a row of `clips@1` (at least `COLUMNS`).
        policy: bounds. A bound whose score is missing rejects with `SCORE_MISSING`.

    Returns:
        Whether to keep the clip, and all reasons against it, in a fixed order.
    """
    facts = {**scores, **_derived(scores)}
    reasons = []
    for reason, score, bound in _RULES:
        limit, value = getattr(policy, bound), facts[score]
        if limit is None:
            continue
        if value is None:
            reasons.append(SCORE_MISSING)
        elif value < limit if bound.startswith("min_") else value > limit:
            reasons.append(reason)
    reasons = list(dict.fromkeys(reasons))
    return not reasons, reasons


def _derived(scores: Mapping[str, Any]) -> dict[str, float]:
    expected = scores["expected_frames"] or 1  # containers that announce nothing break no promise
    return {
        "short_side_px": min(scores["src_width_px"], scores["src_height_px"]),
        "duration_s": (scores["num_frames"] - 1) / scores["rate_fps"],
        "decoded_share": (scores["decoded_frames"] + _FRAME_SLACK) / expected,
    }


def find_duplicates(clips: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Find the clips that repeat a better one; the result does not depend on their order.

    The best clip is kept: most pixels, then the source that lost fewest frames, then ids, so that
    of equal copies one source stays whole. Others repeat it when they have
    its id (the same bytes under another name), or when they begin at the same time of their source
    and all three hashes differ in at most 6 of 64 bits. Candidates share a 16-bit band of a hash.

    Args:
        clips: rows of `clips@1` (at least `COLUMNS`).

    Returns:
        (clip_id, source_uri) of each repeating clip, with its reasons.
    """
    kept_ids: set[str] = set()
    bands: dict[tuple[int, int, int], list[Mapping[str, Any]]] = {}
    found: dict[tuple[str, str], list[str]] = {}
    for clip in sorted(clips, key=_rank):
        name = (clip["clip_id"], clip["source_uri"])
        keys = _band_keys(clip["phash"])
        if clip["clip_id"] in kept_ids:
            found[name] = [DUPLICATE_EXACT]
        elif any(_is_near(clip, other) for key in keys for other in bands.get(key, ())):
            found[name] = [DUPLICATE_NEAR]
        else:
            kept_ids.add(clip["clip_id"])
            for key in keys:
                bands.setdefault(key, []).append(clip)
    return found


def _rank(clip: Mapping[str, Any]) -> tuple[Any, ...]:
    pixels = clip["src_width_px"] * clip["src_height_px"]
    quality = (-pixels, -clip["decoded_frames"], clip["decode_errors"])
    return (*quality, clip["source_id"], clip["clip_id"], clip["source_uri"])


def _band_keys(hashes: list[int]) -> list[tuple[int, int, int]]:
    return [
        (frame, band, value >> (16 * band) & 0xFFFF)
        for frame, value in enumerate(hashes)
        for band in range(_BANDS)
    ]


def _is_near(clip: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (
        clip["source_id"] != other["source_id"]
        and abs(clip["span_start_us"] - other["span_start_us"]) <= _SAME_START_US
        and all(
            ((a ^ b) & (1 << 64) - 1).bit_count() <= _HAMMING
            for a, b in zip(clip["phash"], other["phash"], strict=True)
        )
    )
