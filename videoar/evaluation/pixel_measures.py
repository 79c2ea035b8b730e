"""Measures of a clip that need no network: named numbers, of the clip and of its windows.

They are proxies: cheap, and blind to what is shown. A frozen clip has perfect flickering,
consistency and residual, so these are read beside a measure of motion. NumPy only.

Axes: T frames, H W pixels, C colours, M measures.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from videoar.evaluation.extractor import NUM_WINDOWS, Clip, Frames, Vector, require_frames
from videoar.evaluation.metric_names import PIXEL_COMPONENTS, WINDOW_COMPONENTS
from videoar.evaluation.vbench import temporal_flickering

MEASURES_VERSION = 1
"""Digest of these measures in `features@1`: raise it when a value can change."""
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601
_WELL_EXPOSED = 0.2  # Source: Mertens et al., Exposure Fusion (2007), sigma
_HIST_BINS = 8  # chosen: 512 colours, as coarse as the histograms of Swain and Ballard (1991)


class PixelMeasures:
    """Extractor of the measures of this module.

    Args:
        presets: `clip`, `windows` or both.
    """

    name = "pixels"
    digest = f"pixels-{MEASURES_VERSION}"

    def __init__(self, presets: tuple[str, ...]) -> None:
        self._presets = presets

    def vectors(self, clip: Clip) -> Mapping[str, Vector]:
        """Return `clip`, as named by `PIXEL_COMPONENTS`, and `windows`.

        `windows` is [window 0: M numbers, window 1: M numbers, ...], see `frame_measures`.

        Raises:
            ContractError: fewer than four frames.
        """
        require_frames(clip, NUM_WINDOWS, self.name)
        frames = clip.frames
        measured_TM = np.array([frame_measures(frame) for frame in frames])
        values = {
            "temporal_flickering": temporal_flickering(frames),
            "frame_diff_top5": frame_difference(frames),
            "linear_interp_residual": interpolation_residual(frames),
            "hist_consistency": histogram_consistency(frames),
            **dict(zip(WINDOW_COMPONENTS, measured_TM.mean(axis=0), strict=True)),
        }
        windows = [part.mean(axis=0) for part in np.array_split(measured_TM, NUM_WINDOWS)]
        found = {
            "clip": np.array([values[name] for name in PIXEL_COMPONENTS]),
            "windows": np.concatenate(windows),
        }
        return {name: found[name].astype(np.float32) for name in self._presets}


def frame_difference(frames_THWC: Frames) -> float:
    """Return the mean of the largest 5 % of pixel differences of adjacent frames, in [0, 1].

    The largest 5 % because a small moving figure on a still background would vanish in the mean.
    """
    # int16, because differences of uint8 wrap around: 0 - 1 = 255.
    steps = np.abs(np.diff(frames_THWC.astype(np.int16), axis=0)).mean(axis=-1).ravel()
    top = max(1, len(steps) // 20)
    return float(np.partition(steps, -top)[-top:].mean() / 255)


def interpolation_residual(frames_THWC: Frames) -> float:
    """Return how far odd frames are from the mean of their neighbours, in [0, 1].

    This is 1 - motion_smoothness of VBench with linear interpolation in place of its network.
    """
    kept = frames_THWC[::2].astype(np.float32)
    dropped = frames_THWC[1::2][: len(kept) - 1]
    return float(np.abs((kept[:-1] + kept[1:]) / 2 - dropped).mean() / 255)


def histogram_consistency(frames_THWC: Frames) -> float:
    """Return the mean intersection of the colour histograms of adjacent frames, in [0, 1].

    Source: Swain and Ballard, Color Indexing, IJCV 7 (1991).
    """
    bins_THWC = frames_THWC // (256 // _HIST_BINS)
    index_THW = bins_THWC @ np.array([_HIST_BINS**2, _HIST_BINS, 1])
    histograms = np.array([
        np.bincount(index.ravel(), minlength=_HIST_BINS**3) for index in index_THW
    ])
    shared = np.minimum(histograms[:-1], histograms[1:]).sum(axis=1)
    return float(shared.mean() / histograms[0].sum())


def frame_measures(frame_HWC: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Return `metric_names.WINDOW_COMPONENTS` of a frame.

    - Variance of the Laplacian of luma, in squared grey levels: the usual measure of focus.
      Source: Pech-Pacheco et al., ICPR 2000.
    - Exposure: mean over pixels of the well-exposedness, in [0, 1]; 1 if all are at half scale.
      Source: Mertens et al., Exposure Fusion, Pacific Graphics 2007, section 3.1.
    - Colourfulness. Source: Hasler and Suesstrunk, SPIE 5007 (2003), M3, of 8-bit sRGB.
    """
    rgb = frame_HWC.astype(np.float32)
    luma = rgb @ _LUMA_WEIGHTS
    laplacian = np.diff(luma, 2, axis=0)[:, 1:-1] + np.diff(luma, 2, axis=1)[1:-1]
    exposure = np.exp(-((rgb / 255 - 0.5) ** 2).sum(axis=2) / (2 * _WELL_EXPOSED**2))
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    spread = np.hypot(red_green.std(), yellow_blue.std())
    colourfulness = spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
    return float(laplacian.var()), float(exposure.mean()), float(colourfulness)
