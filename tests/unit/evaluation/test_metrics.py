"""PSNR and SSIM: closed forms and order."""

import numpy as np
import pytest

from videoar.evaluation.metrics import MAX_PSNR_DB, psnr_T, ssim_T

BLACK = np.zeros((2, 24, 24, 3), dtype=np.uint8)


def test_black_against_white():
    white = BLACK + 255
    assert psnr_T(BLACK, white) == pytest.approx([0, 0], abs=1e-9)
    assert ssim_T(BLACK, white) == pytest.approx([9.999e-05, 9.999e-05], rel=1e-4)


def test_equal_frames_and_a_known_error():
    assert psnr_T(BLACK, BLACK).tolist() == [MAX_PSNR_DB] * 2
    assert ssim_T(BLACK, BLACK) == pytest.approx([1, 1])
    off = BLACK.copy()
    off[1] = 10
    assert psnr_T(BLACK, off) == pytest.approx([MAX_PSNR_DB, 20 * np.log10(25.5)])


def test_more_noise_is_worse():
    draw_from = np.random.default_rng(0)
    image = draw_from.integers(60, 190, BLACK.shape)
    noise = draw_from.normal(size=BLACK.shape)
    scores = [
        (psnr_T(image.astype(np.uint8), noisy)[0], ssim_T(image.astype(np.uint8), noisy)[0])
        for noisy in ((image + noise * scale).astype(np.uint8) for scale in (4, 8, 16))
    ]
    assert scores == sorted(scores, reverse=True)
