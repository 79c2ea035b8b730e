"""Decide which clips are kept: a pure function of stored scores and a policy.

Ingest writes the scores once; a policy is a file of bounds on them. A new policy is therefore
applied without decoding a frame, and gives the same result on any machine.

Licences and origins are what `labels.csv` of an input states: a row without one is denied, unless
the policy allows null by name.

A bound may be a percentile, but only of a stored profile, never of the rows at hand: otherwise one
new source could change the decision on another.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ValidationError, ValidationInfo

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS
from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.types import Frozen
from videoar.core.yaml_file import read_mapping

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LICENCE_DENIED = "LICENCE_DENIED"
SCORE_MISSING = "SCORE_MISSING"
_FRAME_SLACK = 2  # containers announce up to two frames that no decoder outputs
# chosen: NTSC's 1000/1001 is 0.1 %; the time stamps of short clips in whole ms are off by 0.3 %
_CLOCK_SLACK = {"src_rate_fps": 0.005}
# FFmpeg's names of transfer functions that look wrong where they are taken for that of BT.709
_HDR_TRANSFERS = {"smpte2084", "arib-std-b67", "log100", "log316"}
_FOLDER = Path(__file__).parent / "policies"
_PERCENTILE = re.compile(r"p(\d\d)")
_RULES = (  # reason, score, bound; reasons are reported in this order, the first one is counted
    ("SHORT_SIDE", "short_side_px", "min_short_side_px"),
    ("FPS_LOW", "src_rate_fps", "min_source_fps"),
    ("FPS_HIGH", "src_rate_fps", "max_source_fps"),
    ("CLIP_SHORT", "duration_s", "min_duration_s"),
    ("CLIP_LONG", "duration_s", "max_duration_s"),
    ("TRUNCATED", "decoded_share", "min_decoded_share"),
    ("DECODE_ERRORS", "decode_errors", "max_decode_errors"),
    ("FRAMES_MISSING", "missing_frames", "max_missing_frames"),
    ("PICTURE_KIND", "is_special", "max_special_pictures"),
    ("HDR", "unmapped_hdr", "max_unmapped_hdr"),
    ("INTERLACED", "combed_left_frac", "max_combed_frac"),
    ("BLACK", "black_frac", "max_black_frac"),
    ("FROZEN", "still_frac", "max_freeze_frac"),
    ("LOW_MOTION", "motion_mean", "min_motion"),
    ("LOW_MOTION", "motion_per_s", "min_motion_per_s"),
    ("DARK", "luma_mean", "min_luma"),
    ("BRIGHT", "luma_mean", "max_luma"),
    ("LETTERBOX", "letterbox_frac", "max_letterbox_frac"),
    ("BLURRED", "blur_p10", "min_blur"),
)
_LISTS = {"allowed_licences": "licence", "allowed_origins": "origin"}
REASONS = (LICENCE_DENIED, *(rule[0] for rule in _RULES), SCORE_MISSING)
COLUMNS = (
    "src_width_px", "src_height_px", "src_rate_fps", "expected_frames", "decoded_frames",
    "decode_errors", "missing_frames", "num_frames", "rate_fps", "luma_mean", "black_frac",
    "freeze_frac", "blur_p10", "motion_mean", "letterbox_frac", "still_frac", "motion_per_s",
    "color_transfer", "tone_map", "combed_frac", "deinterlacer", "picture_kind", *_LISTS.values(),
)  # fmt: skip
"""Columns of `clips@1` that `evaluate` needs."""
Bounds = Mapping[str, float | None]
"""The numbers of a policy, with percentiles resolved; None disables a bound."""
Allowed = Mapping[str, tuple[str | None, ...]]
"""The values that a column may have; columns without a rule are left out."""


@lru_cache(maxsize=1)
def score_columns() -> tuple[str, ...]:
    """Return the columns of `clips@1` that a profile describes: those of floating-point type."""
    columns = load_contract(CLIPS).columns
    return tuple(column.name for column in columns if column.type in {"float32", "float64"})


def _bound(value: object, info: ValidationInfo) -> float | str | None:
    if value is None or (isinstance(value, str) and _PERCENTILE.fullmatch(value)):
        # derived scores (short side, duration, decoded share) are no columns, so not in a profile
        score = score_of(str(info.field_name))
        if value is not None and score not in score_columns():
            raise ValueError(f"{value}: a profile does not include {score}, give a number")
        return value
    # bool is an int to Python, but `min_blur: true` in a file is a mistake
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is neither a number, nor a percentile such as p02, nor null")
    return value


Bound = Annotated[float | str | None, BeforeValidator(_bound)]


class Policy(Frozen):
    """Bounds on scores: a number, a percentile of a stored profile (`p02`), or null for none."""

    allowed_licences: tuple[str | None, ...] | None = None
    """Licences of sources that may be used, as `labels.csv` spells them; null in the list allows
    sources that state none. No list: all."""
    allowed_origins: tuple[str | None, ...] | None = None
    """The same for their origins."""
    min_short_side_px: Bound = None
    """Smallest shorter side of the source's frames, in px."""
    min_source_fps: Bound = None
    """Smallest frame rate of the source, in frames/s; 0.5 % are left to the container's clock."""
    max_source_fps: Bound = None
    """Largest frame rate of the source, in frames/s, likewise."""
    min_duration_s: Bound = None
    """Shortest clip, in s."""
    max_duration_s: Bound = None
    """Longest clip, in s."""
    min_decoded_share: Bound = None
    """Smallest share of the announced frames that were decoded, 0 to 1."""
    max_decode_errors: Bound = None
    """Most decoder errors in the clip's span."""
    max_missing_frames: Bound = None
    """Most frames that the times in the clip's span show to be lost; none are where the frame rate
    varies."""
    max_special_pictures: Bound = None
    """0 rejects clips whose picture is not what a viewer sees: of two views for a stereo display,
    of a sphere, of one field of a frame, or with transparent parts."""
    max_unmapped_hdr: Bound = None
    """0 rejects clips of high dynamic range (PQ, HLG, logarithmic) not mapped to BT.709."""
    max_combed_frac: Bound = None
    """Largest share of combed frames in a clip that was not deinterlaced, 0 to 1."""
    min_luma: Bound = None
    """Smallest mean luma, 0 (black) to 255."""
    max_luma: Bound = None
    """Largest mean luma, 0 to 255 (white)."""
    max_black_frac: Bound = None
    """Largest share of black frames, 0 to 1."""
    max_freeze_frac: Bound = None
    """Largest share of time in which the picture stands still, 0 to 1."""
    max_letterbox_frac: Bound = None
    """Largest share of the frame's area that is a constant black border, 0 to 1."""
    min_motion: Bound = None
    """Smallest mean absolute difference of consecutive source frames, in luma levels of 255: less
    at a higher frame rate, where `min_motion_per_s` is not."""
    min_motion_per_s: Bound = None
    """Smallest mean change of the picture per second, in luma levels of 255."""
    min_blur: Bound = None
    """Smallest 10th percentile of the frames' Laplacian variance; blurred clips have a low one."""

    @property
    def allowed(self) -> Allowed:
        """The values that columns may have."""
        lists = {column: getattr(self, name) for name, column in _LISTS.items()}
        return {column: values for column, values in lists.items() if values is not None}

    @property
    def percentiles(self) -> dict[str, str]:
        """The bounds that need a profile."""
        return {name: value for name, value in self if isinstance(value, str)}

    def resolve_percentiles(self, profile: Mapping[str, Sequence[float]] | None = None) -> Bounds:
        """Replace percentiles by numbers.

        Args:
            profile: column of `clips@1` to its percentiles 0 to 100.

        Raises:
            ConfigError: a bound is a percentile, and `profile` does not include its score.
        """
        bounds = {name: getattr(self, name) for _, _, name in _RULES}
        for name, percentile in self.percentiles.items():
            score = score_of(name)
            values = (profile or {}).get(score)
            if not values:
                what = f"{percentile} needs a profile of {score}, which is missing"
                raise ConfigError(f"policy, {name}", what, PROFILE_HINT)
            bounds[name] = values[int(percentile[1:])]  # a profile has percentiles 0 to 100
        return bounds


PROFILE_HINT = "add a stage of type profile as an input, from: {profile: ...}; or give a number"


def score_of(bound: str) -> str:
    """Return the score that a bound applies to."""
    return next(score for _, score, name in _RULES if name == bound)


def policy_names() -> list[str]:
    """Return the names of the shipped policies."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_policy(name_or_path: str) -> Policy:
    """Read a shipped policy by name, or a policy file.

    Raises:
        ConfigError: no such policy, or the file is invalid; lists all mistakes.
    """
    is_path = name_or_path.endswith((".yaml", ".yml"))
    if not is_path and name_or_path not in policy_names():
        known = did_you_mean(name_or_path, policy_names())
        raise ConfigError(f"policy {name_or_path}", "no such policy", f"{known}, or a .yaml file")
    path = Path(name_or_path) if is_path else _FOLDER / f"{name_or_path}.yaml"
    return parse_policy(read_mapping(path, "bounds such as `min_motion: p02`"), str(path))


def parse_policy(bounds: Mapping[Any, Any], where: str) -> Policy:
    """Validate bounds by name.

    Raises:
        ConfigError: lists all mistakes, each with its key.
    """
    try:
        return Policy.model_validate({str(name): bound for name, bound in bounds.items()})
    except ValidationError as error:
        raise ConfigError(where, "; ".join(map(_explain, error.errors()))) from None


def _explain(detail: "ErrorDetails") -> str:
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"{name}: no such bound, {did_you_mean(name, Policy.model_fields)}"
    return f"{name}: {detail['msg'].removeprefix('Value error, ')}"


def evaluate(scores: Mapping[str, Any], bounds: Bounds, allowed: Allowed) -> list[str]:
    """Return the reasons to reject one clip, in a fixed order; none: keep it.

    Args:
        scores: a row of `clips@1` (at least `COLUMNS`).
        bounds: a resolved policy. A bound whose score is missing rejects with `SCORE_MISSING`.
        allowed: of the policy, too. Any other value, and a missing one, rejects with
            `LICENCE_DENIED`.
    """
    values = {**scores, **_derived(scores)}
    is_denied = any(scores[column] not in permitted for column, permitted in allowed.items())
    reasons = [LICENCE_DENIED] if is_denied else []
    for reason, score, bound in _RULES:
        limit, value = bounds[bound], values[score]
        if limit is None:
            continue
        if value is None:
            reasons.append(SCORE_MISSING)
            continue
        slack = limit * _CLOCK_SLACK.get(score, 0.0)
        if value < limit - slack if bound.startswith("min_") else value > limit + slack:
            reasons.append(reason)
    return list(dict.fromkeys(reasons))


def _derived(scores: Mapping[str, Any]) -> dict[str, float | None]:
    # a container that announces no number of frames cannot be short of it
    expected = scores["expected_frames"] or 1
    return {
        "short_side_px": min(scores["src_width_px"], scores["src_height_px"]),
        "duration_s": (scores["num_frames"] - 1) / scores["rate_fps"],
        "decoded_share": (scores["decoded_frames"] + _FRAME_SLACK) / expected,
        "missing_frames": scores["missing_frames"] or 0,  # null in clips of version 0.1
        "is_special": float(scores["picture_kind"] is not None),
        "unmapped_hdr": float(
            scores["color_transfer"] in _HDR_TRANSFERS and scores["tone_map"] is None
        ),
        "combed_left_frac": 0.0 if scores["deinterlacer"] else scores["combed_frac"] or 0.0,
        **_in_time(scores),
    }


def _in_time(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the scores over time; of clips from before they existed, those over source frames."""
    still_frac, motion_per_s = scores["still_frac"], scores["motion_per_s"]
    if motion_per_s is None and scores["motion_mean"] is not None:
        motion_per_s = scores["motion_mean"] * scores["src_rate_fps"]
    return {
        "still_frac": scores["freeze_frac"] if still_frac is None else still_frac,
        "motion_per_s": motion_per_s,
    }
