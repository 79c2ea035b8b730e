"""Full-reference image metrics per frame, for reconstructions.

Axes: T frames, H W pixels, C colour channels. Values are compared in [0, 1].
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Frames = NDArray[np.uint8]

MAX_PSNR_DB = 100.0  # chosen: equal frames have infinite PSNR, which would make the mean infinite


def psnr_T(a_THWC: Frames, b_THWC: Frames) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each frame in dB, at most `MAX_PSNR_DB`."""
    error = (a_THWC.astype(np.float64) - b_THWC) / 255  # float first: uint8 differences wrap
    mse_T = (error**2).mean(axis=(1, 2, 3))
    return np.asarray(-10 * np.log10(np.maximum(mse_T, 10 ** (-MAX_PSNR_DB / 10))))


def ssim_T(a_THWC: Frames, b_THWC: Frames) -> NDArray[np.float64]:
    """Return the structural similarity of each frame, averaged over channels.

    Source: Wang et al., IEEE TIP 13 (2004): Gaussian window 11, sigma 1.5, K1 .01, K2 .03.
    """
    a, b = _planes(a_THWC), _planes(b_THWC)
    mean_a, mean_b = _blur(a), _blur(b)
    # Variance as E[x^2] - E[x]^2 cancels digits: hence float64 in `_planes`.
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    ssim = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure
    return np.asarray(ssim.mean(dim=(1, 2)).reshape(len(a_THWC), -1).mean(dim=1).numpy())


def _planes(frames_THWC: Frames) -> Tensor:
    """Return colour planes [T * C, H, W] in [0, 1], float64."""
    return torch.from_numpy(frames_THWC).permute(0, 3, 1, 2).flatten(0, 1).double() / 255


def _blur(planes_NHW: Tensor) -> Tensor:
    """Convolve with the 11-tap Gaussian, rows then columns, without padding as in the paper."""
    window = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    rows = functional.conv2d(planes_NHW[:, None], window.view(1, 1, 11, 1))
    return functional.conv2d(rows, window.view(1, 1, 1, 11))[:, 0]
