import pytest
import torch

from videoar.model.quantizer import MultiScaleBSQ
from videoar.model.schedule import SMALL_SQUARE, latent_frames, scale_schedule, tokens_per_frame


def smooth_latent(norm=3.0, K=8, T=3, H=8):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, K, T, 4, 4, generator=generator)
    up = torch.nn.functional.interpolate(coarse, size=(T, H, H), mode="trilinear")
    return up / up.norm(dim=1, keepdim=True).mean() * norm


@pytest.fixture
def bsq():
    return MultiScaleBSQ(num_bits=8, scales=SMALL_SQUARE)


def test_published_schedules_and_token_counts():
    assert scale_schedule(8, 8) == SMALL_SQUARE
    assert tokens_per_frame(scale_schedule(8, 8)) == 130
    assert tokens_per_frame(scale_schedule(16, 16)) == 521
    assert tokens_per_frame(scale_schedule(32, 32)) == 2521
    assert tokens_per_frame(scale_schedule(12, 21)) == 472
    wide = scale_schedule(24, 42)
    assert (tokens_per_frame(wide), len(wide), wide[:7]) == (2628, 10, scale_schedule(12, 21))
    assert [latent_frames(n) for n in (1, 17, 65)] == [1, 5, 17]
    with pytest.raises(ValueError, match="1 \\+ 4m"):
        latent_frames(16)


def test_bits_rebuild_the_latent_exactly(bsq):
    pyramid = bsq.pyramid(smooth_latent())
    rebuilt = bsq.decode(pyramid.bits)
    total = sum(bsq.code_map(bits) for bits in pyramid.bits).transpose(1, 2)
    assert torch.equal(rebuilt, pyramid.accumulated[-1].transpose(1, 2))
    assert torch.equal(rebuilt, total)
    assert torch.equal(bsq(smooth_latent()).latent_BKTHW, rebuilt)


def test_codes_have_unit_norm_and_rescaling_keeps_the_first_scale(bsq):
    latent = smooth_latent()
    bits = bsq.encode(latent)
    torch.testing.assert_close(bsq.codes(bits[2]).norm(dim=-1), torch.ones(2, 3, 3, 3))
    assert torch.equal(bits[0], bsq.encode(5 * latent)[0])


def test_residual_falls_with_every_scale_when_latents_are_large_enough(bsq):
    latent = smooth_latent(norm=3.0)
    accumulated = bsq.pyramid(latent).accumulated
    errors = [(latent.transpose(1, 2) - acc).square().mean().item() for acc in accumulated]
    assert errors == sorted(errors, reverse=True)


def test_frames_are_quantized_independently(bsq):
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


def test_gradient_passes_straight_through_and_the_penalty_is_finite(bsq):
    latent = smooth_latent().requires_grad_()
    quantized = bsq(latent)
    (quantized.latent_BKTHW.sum() + quantized.loss).backward()
    assert latent.grad is not None
    assert torch.isfinite(latent.grad).all()
    assert latent.grad.abs().min() > 0
