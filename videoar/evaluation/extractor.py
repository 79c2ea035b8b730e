"""Networks and measures of a clip, behind one protocol: a clip in, a vector per preset out.

What distances and scores are computed from is stored once per clip (`features@1`), so it can be
computed by many workers, resumed by shard and found again for clips that have not changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from videoar.core.errors import ContractError

Frames = NDArray[np.uint8]
Vector = NDArray[np.float32]

NUM_WINDOWS = 4
"""Equal parts of a clip of which each has a vector of its own, in presets `windows`."""


@dataclass(frozen=True)
class Clip:
    """A decoded clip, its frame rate and its prompt or caption."""

    id: str
    frames: Frames
    """[T, H, W, 3], RGB."""
    rate_fps: float
    text: str


class Extractor(Protocol):
    """Computes vectors of clips; equal clips have equal vectors, whatever is computed with them."""

    name: str
    """Column `network` of `features@1`."""
    digest: str
    """Digest of the weights; of an extractor without weights, the version of its code."""

    def vectors(self, clip: Clip) -> Mapping[str, Vector]:
        """Return the vector of each preset.

        Raises:
            ContractError: the clip does not fit, such as too few frames.
        """


def require_frames(clip: Clip, num: int, network: str) -> None:
    """Raise unless a clip has as many frames as a network needs.

    Raises:
        ContractError: it has fewer.
    """
    if len(clip.frames) < num:
        what = f"has {len(clip.frames)} frames, {network} needs {num}"
        raise ContractError(f"clip {clip.id}", what, "make longer clips, or leave the network out")
