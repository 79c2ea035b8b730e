"""PSNR and SSIM: closed forms and order."""

import numpy as np
import pytest

from videoar.evaluation.metrics import MAX_PSNR_DB, psnr_T, ssim_T

BLACK = np.zeros((2, 24, 24, 3), dtype=np.uint8)


def test_psnr_and_ssim_black_against_white_are_zero():
    white = BLACK + 255
    assert psnr_T(BLACK, white) == pytest.approx([0, 0], abs=1e-9)
    assert ssim_T(BLACK, white) == pytest.approx([9.999e-05, 9.999e-05], rel=1e-4)


def test_psnr_known_error_gives_closed_form():
    assert psnr_T(BLACK, BLACK).tolist() == [MAX_PSNR_DB] * 2
    assert ssim_T(BLACK, BLACK) == pytest.approx([1, 1])
    off = BLACK.copy()
    off[1] = 10
    assert psnr_T(BLACK, off) == pytest.approx([MAX_PSNR_DB, 20 * np.log10(25.5)])


def test_psnr_and_ssim_decrease_with_noise():
    draw_from = np.random.default_rng(0)
    image = draw_from.integers(60, 190, BLACK.shape)
    noise = draw_from.normal(size=BLACK.shape)
    scores = [
        (psnr_T(image.astype(np.uint8), noisy)[0], ssim_T(image.astype(np.uint8), noisy)[0])
        for noisy in ((image + noise * scale).astype(np.uint8) for scale in (4, 8, 16))
    ]
    assert scores == sorted(scores, reverse=True)


def test_ssim_equals_published_formula():
    """Windows one by one, weights written out, on grey values of 255; two windows by two."""
    draw_from = np.random.default_rng(1)
    a = draw_from.integers(0, 256, (1, 12, 12, 3)).astype(np.uint8)
    b = (0.7 * a + 0.3 * draw_from.integers(0, 256, a.shape)).astype(np.uint8)
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        for i in range(2):
            for j in range(2):
                x = a[0, i : i + 11, j : j + 11, channel].astype(float)
                y = b[0, i : i + 11, j : j + 11, channel].astype(float)
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
                values.append(luminance * (2 * cov + c2) / (vx + vy + c2))
    assert ssim_T(a, b) == pytest.approx([np.mean(values)], rel=1e-9)
