"""The ways in which published code prepares clips for I3D. Their distances are not comparable.

Axes: T frames, C colours, H W pixels.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_SIDE_PX = 224  # Source: the published graph


def common_metrics(frames_THWC: np.ndarray) -> Tensor:
    """Resize the short side of a clip to 224 px, crop the centre, scale to [-1, 1].

    Args:
        frames_THWC: RGB, uint8.

    Returns:
        [1, T, 224, 224, 3], float32.

    Source: JunyaoHu/common_metrics_on_video_quality, fvd/videogpt: bilinear, align_corners=False.
    """
    video_TCHW = _video(frames_THWC)
    height, width = video_TCHW.shape[2:]
    # Rounded up, so that a rounding error never leaves less than the 224 px of the crop.
    scale = _SIDE_PX / min(height, width)
    size = tuple(max(_SIDE_PX, math.ceil(side * scale)) for side in (height, width))
    return _batch(_centre(functional.interpolate(video_TCHW, size, mode="bilinear"), _SIDE_PX))


def stylegan_v(frames_THWC: np.ndarray) -> Tensor:
    """Crop the central square of a clip, then resize it; otherwise like `common_metrics`.

    Its data sets are cropped to squares, and its TorchScript network resizes what it gets. For
    square clips it differs from `common_metrics` in the covariance alone, which is over N.

    Source: universome/stylegan-v src/metrics/frechet_video_distance.py, resize=True.
    """
    square = _centre(_video(frames_THWC), min(frames_THWC.shape[1:3]))
    return _batch(functional.interpolate(square, (_SIDE_PX, _SIDE_PX), mode="bilinear"))


def google_research(frames_THWC: np.ndarray) -> Tensor:
    """Squash a clip to 224 x 224 px like `tf.image.resize_bilinear` of TensorFlow 1.

    Output pixel i is sampled at i * size / 224, without an offset of half a pixel and without
    antialiasing: the image moves by up to half a pixel against the other presets.

    Source: google-research frechet_video_distance.py, preprocess.
    """
    video_TCHW = _video(frames_THWC)
    for axis in (2, 3):
        size = video_TCHW.shape[axis]
        position = torch.arange(_SIDE_PX) * (size / _SIDE_PX)
        low = position.floor().long()
        high = (low + 1).clamp(max=size - 1)
        part = (position - low).view(-1, *[1] * (3 - axis))
        before = video_TCHW.index_select(axis, low)
        video_TCHW = before + (video_TCHW.index_select(axis, high) - before) * part
    return _batch(video_TCHW)


class Preset(NamedTuple):
    """How a clip is prepared."""

    preprocess: Callable[[np.ndarray], Tensor]
    num_frames: int = 16
    """Leading frames that are used. Source: 16 in the protocols of StyleGAN-V and TATS."""


PRESETS: Mapping[str, Preset] = {
    "common_metrics": Preset(common_metrics),
    "common_metrics-17f": Preset(common_metrics, 17),  # Source: the protocol of OmniTokenizer
    "google-research": Preset(google_research),
    "stylegan-v": Preset(stylegan_v),
}
"""By name, as in `features@1` and in protocol locks."""


def _video(frames_THWC: np.ndarray) -> Tensor:
    # A copy, because torch has no read-only tensors and decoded frames may be read-only.
    return torch.tensor(frames_THWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def _centre(video_TCHW: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in video_TCHW.shape[2:])
    return video_TCHW[..., top : top + side, left : left + side]


def _batch(video_TCHW: Tensor) -> Tensor:
    return video_TCHW.permute(0, 2, 3, 1)[None]
