"""The quantizer beside a slow and obvious one, and the invariants that the store relies on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from videoar.model.schedule import SMALL_SQUARE, latent_frames, scale_schedule, tokens_per_frame
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.storage.token_codec import pack_bits, unpack_bits

torch.set_num_threads(1)


def smooth_latent(norm=3.0, K=8, T=3, H=8):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, K, T, 4, 4, generator=generator)
    up = torch.nn.functional.interpolate(coarse, size=(T, H, H), mode="trilinear")
    return up / up.norm(dim=1, keepdim=True).mean() * norm


@pytest.fixture
def bsq():
    return MultiScaleBSQ(num_bits=8, scales=SMALL_SQUARE)


def test_schedules_have_the_published_token_counts():
    assert scale_schedule(8, 8) == SMALL_SQUARE
    assert tokens_per_frame(scale_schedule(8, 8)) == 130
    assert tokens_per_frame(scale_schedule(16, 16)) == 521
    assert tokens_per_frame(scale_schedule(32, 32)) == 2521
    assert tokens_per_frame(scale_schedule(12, 21)) == 472
    wide = scale_schedule(24, 42)
    assert (tokens_per_frame(wide), len(wide), wide[:7]) == (2628, 10, scale_schedule(12, 21))
    assert [latent_frames(n, 4) for n in (1, 17, 65)] == [1, 5, 17]
    with pytest.raises(ValueError, match="16 frames are not 1 \\+ a multiple of 4"):
        latent_frames(16, 4)


def test_invariant_04_bits_rebuild_the_latent_exactly(bsq):
    pyramid = bsq.pyramid(smooth_latent())
    rebuilt = bsq.decode(pyramid.bits)
    total = sum(bsq.code_map(bits) for bits in pyramid.bits).transpose(1, 2)
    assert torch.equal(rebuilt, pyramid.accumulated[-1].transpose(1, 2))
    assert torch.equal(rebuilt, total)
    assert torch.equal(bsq(smooth_latent()).latent_BKTHW, rebuilt)


def test_invariant_05_codes_have_unit_norm_and_rescaling_keeps_the_first_scale(bsq):
    latent = smooth_latent()
    bits = bsq.encode(latent)
    torch.testing.assert_close(bsq.codes(bits[2]).norm(dim=-1), torch.ones(2, 3, 3, 3))
    assert torch.equal(bits[0], bsq.encode(5 * latent)[0])


def test_invariant_06_residual_falls_with_every_scale_at_norm_3(bsq):
    latent = smooth_latent(norm=3.0)
    accumulated = bsq.pyramid(latent).accumulated
    errors = [(latent.transpose(1, 2) - acc).square().mean().item() for acc in accumulated]
    assert errors == sorted(errors, reverse=True)


def test_invariant_11_frames_are_quantized_independently(bsq):
    latent = smooth_latent()
    together = bsq.encode(latent)
    for t in range(3):
        alone = bsq.encode(latent[:, :, t : t + 1])
        assert all(torch.equal(a[:, 0], b[:, t]) for a, b in zip(alone, together, strict=True))


def test_fp16_storage_changes_few_bits(bsq):
    latent = smooth_latent()
    changed = [
        (a != b).float().mean()
        for a, b in zip(bsq.encode(latent), bsq.encode(latent.half()), strict=True)
    ]
    assert max(changed) < 2e-3


def test_gradient_is_straight_through_and_the_penalty_finite(bsq):
    latent = smooth_latent().requires_grad_()
    quantized = bsq(latent)
    (quantized.latent_BKTHW.sum() + quantized.loss).backward()
    assert latent.grad is not None
    assert torch.isfinite(latent.grad).all()
    assert latent.grad.abs().min() > 0


def area_down(x_KHW, size):
    """Mean over the pixels that each cell touches."""
    k, height, width = x_KHW.shape
    out = np.zeros((k, *size))
    for i in range(size[0]):
        for j in range(size[1]):
            top, bottom = i * height // size[0], -(-(i + 1) * height // size[0])
            left, right = j * width // size[1], -(-(j + 1) * width // size[1])
            out[:, i, j] = x_KHW[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


def bilinear_up(x_Khw, size):
    """Weigh the two nearest centres of cells in each direction; beyond the last one, repeat it."""
    (_, height, width), out = x_Khw.shape, np.zeros((len(x_Khw), *size))

    def nearest(i, length, cells):
        place = min(max((i + 0.5) * cells / length - 0.5, 0), cells - 1)
        low = int(place)
        return low, min(low + 1, cells - 1), place - low

    for i in range(size[0]):
        y0, y1, fy = nearest(i, size[0], height)
        for j in range(size[1]):
            x0, x1, fx = nearest(j, size[1], width)
            upper = (1 - fx) * x_Khw[:, y0, x0] + fx * x_Khw[:, y0, x1]
            lower = (1 - fx) * x_Khw[:, y1, x0] + fx * x_Khw[:, y1, x1]
            out[:, i, j] = (1 - fy) * upper + fy * lower
    return out


def slow_bsq(latent_KTHW, scales):
    """Per frame and scale: residuals z [K, h, w]; then the rebuilt latent. Float64."""
    num_bits, num_frames, *grid = latent_KTHW.shape
    residuals, rebuilt = [], np.zeros_like(latent_KTHW)
    for t in range(num_frames):
        of_frame = []
        for scale in scales:
            z = area_down(latent_KTHW[:, t] - rebuilt[:, t], scale)
            code = np.where(z > 0, 1, -1) / math.sqrt(num_bits)
            rebuilt[:, t] += bilinear_up(code, grid)
            of_frame.append(z)
        residuals.append(of_frame)
    return residuals, rebuilt


def slow_penalty(z_NKhw):
    """Infinity's terms of one scale, with probabilities written out."""
    num_bits = z_NKhw.shape[1]
    code = np.where(z_NKhw > 0, 1, -1) / math.sqrt(num_bits)

    def entropy(p):
        p = np.clip(p, 1e-6, 1 - 1e-6)
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    p = 1 / (1 + np.exp(np.clip(4 * z_NKhw * 100 / math.sqrt(num_bits), -700, 700)))
    sample = entropy(p).mean(axis=(0, 2, 3)).sum()
    codebook = entropy(p.mean(axis=(0, 2, 3))).sum()
    return 0.25 * ((z_NKhw - code) ** 2).mean() + 0.1 * (sample - codebook) / 100


@st.composite
def latents_with_scales(draw):
    """A latent [1, K, T, H, W] and a rising schedule that ends at its grid; scales may repeat."""
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    sides = st.tuples(st.integers(1, height), st.integers(1, width))
    inner = draw(st.lists(sides, max_size=3))
    scales = (*sorted(inner), (height, width))
    shape = (1, draw(st.integers(1, 5)), draw(st.integers(1, 3)), height, width)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    norm = draw(st.sampled_from([0.3, 1.0, 4.0]))
    return norm * torch.randn(shape, generator=generator, dtype=torch.float64), scales


@settings(max_examples=60)
@given(latents_with_scales())
def test_quantizer_agrees_with_a_slow_reference(case):
    latent, scales = case
    bsq = MultiScaleBSQ(latent.shape[1], scales)
    residuals, rebuilt = slow_bsq(latent[0].numpy(), scales)
    assume(min(np.abs(z).min() for of_frame in residuals for z in of_frame) > 1e-4)  # no ties
    pyramid, quantized = bsq.pyramid(latent), bsq(latent)
    for t, of_frame in enumerate(residuals):
        for bits, z in zip(pyramid.bits, of_frame, strict=True):
            assert np.array_equal(bits[0, t].numpy(), (z > 0).transpose(1, 2, 0))
    np.testing.assert_allclose(bsq.decode(pyramid.bits)[0], rebuilt, atol=1e-5)
    np.testing.assert_allclose(quantized.latent_BKTHW[0], rebuilt, atol=1e-5)
    by_scale = [np.stack([of_frame[k] for of_frame in residuals]) for k in range(len(scales))]
    wanted = np.mean([slow_penalty(z) for z in by_scale])
    assert quantized.loss.item() == pytest.approx(wanted, rel=1e-3, abs=2e-5)


@settings(max_examples=40)
@given(latents_with_scales())
def test_invariants_04_05_11_bits_are_canonical(case):
    latent, scales = case
    bsq = MultiScaleBSQ(latent.shape[1], scales)
    pyramid = bsq.pyramid(latent.half())
    packed = pack_bits([bits[0].numpy() for bits in pyramid.bits])
    read = unpack_bits(packed, latent.shape[2], scales, latent.shape[1])
    rebuilt = bsq.decode([torch.from_numpy(bits)[None] for bits in read])
    assert torch.equal(rebuilt.transpose(1, 2), pyramid.accumulated[-1])  # bit by bit
    for t in range(latent.shape[2]):  # frames as a batch, or one by one
        alone = bsq.encode(latent.half()[:, :, t : t + 1])
        assert all(torch.equal(a[:, 0], b[:, t]) for a, b in zip(alone, pyramid.bits, strict=True))
    for bits in pyramid.bits:
        norms = bsq.codes(bits).norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert torch.equal(bsq.encode(latent * 8)[0], bsq.encode(latent)[0])


def test_small_latents_overshoot_and_large_ones_do_not(bsq):
    def relative_error(norm):
        latent = smooth_latent(norm)
        return ((bsq.decode(bsq.encode(latent)) - latent).norm() / latent.norm()).item()

    errors = [relative_error(norm) for norm in (0.3, 1.0, 3.0)]
    assert errors[0] > 1 > errors[1] > errors[2]


def test_omitted_scale_has_no_effect(bsq):
    latent = smooth_latent()
    without = MultiScaleBSQ(8, (*SMALL_SQUARE[:4], SMALL_SQUARE[5]))(latent)
    quantized = bsq(latent, kept=[True] * 4 + [False, True])
    assert torch.equal(quantized.latent_BKTHW, without.latent_BKTHW)
    assert torch.equal(quantized.loss, without.loss)
    assert not quantized.mean_p_SK[4].any()
    coarse = bsq(latent, kept=[True] * 4 + [False] * 2).latent_BKTHW
    torch.testing.assert_close(coarse, bsq.pyramid(latent).accumulated[3].transpose(1, 2))


def test_gradients_of_parts_add_up_to_those_of_the_batch(bsq):
    latent = 0.1 * smooth_latent()  # near the decision, where the entropies have gradients
    latent.requires_grad_()
    whole = bsq(latent)
    (wanted,) = torch.autograd.grad(whole.loss, latent)

    def gradient(mean_p_SK):
        parts = [bsq(part, None, mean_p_SK).loss / 2 for part in latent.chunk(2)]
        return torch.autograd.grad(sum(parts), latent)[0]

    scale = wanted.abs().max()
    assert (gradient(whole.mean_p_SK) - wanted).abs().max() < 1e-4 * scale
    assert (gradient(None) - wanted).abs().max() > 1e-3 * scale  # what it is for
