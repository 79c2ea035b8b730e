"""Every term of the tokenizer's loss, by what it must do."""

import math

import pytest
import torch

from videoar.model.discriminator import (
    LeCam,
    PatchDiscriminator,
    hinge_critic_loss,
    hinge_generator_loss,
)
from videoar.model.lpips import LpipsAlex
from videoar.model.tokenizer_config import LossWeights
from videoar.model.tokenizer_losses import RandomFeatures, perceptual_loss, pixel_loss, psnr

torch.set_num_threads(1)


def videos():
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(2, 3, 5, 16, 16, generator=generator) * 2 - 1
    return clip, clip + 0.1 * torch.randn(clip.shape, generator=generator)


def test_pixel_terms_and_psnr_have_their_closed_forms():
    clip = torch.zeros(1, 3, 2, 4, 4)
    assert pixel_loss(clip, clip + 0.5, LossWeights()).item() == pytest.approx(0.5)
    assert pixel_loss(clip, clip + 0.5, LossWeights(l1=0, l2=2)).item() == pytest.approx(0.5)
    assert psnr(clip, clip + 0.5).item() == pytest.approx(-20 * math.log10(0.25))


def test_perceptual_distance_is_zero_at_home_grows_with_noise_and_is_seeded():
    clip, noisy = videos()
    net = RandomFeatures(seed=7)
    assert perceptual_loss(net, clip, clip).item() == pytest.approx(0, abs=1e-9)
    noisy.requires_grad_()
    near, far = perceptual_loss(net, clip, noisy), perceptual_loss(net, clip, 3 * noisy - 2 * clip)
    assert 0 < near < far
    near.backward()
    assert noisy.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in net.parameters())
    assert torch.equal(perceptual_loss(RandomFeatures(seed=7), clip, noisy), near)


def test_lpips_weighs_alexnet_features():
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3),
              10: (256, 256, 3, 3)}  # fmt: skip
    weights = {f"features.{i}.weight": 0.05 * torch.randn(shape) for i, shape in shapes.items()}
    weights |= {f"features.{i}.bias": torch.zeros(shape[0]) for i, shape in shapes.items()}
    heads = {
        f"lin{n}.model.1.weight": torch.rand(1, shape[0], 1, 1)
        for n, shape in enumerate(shapes.values())
    }
    clip = torch.rand(1, 3, 2, 64, 64) * 2 - 1
    near = perceptual_loss(LpipsAlex({**weights, **heads}), clip, clip.flip(2)).item()
    assert near > 0
    four_times = {name: 4 * head for name, head in heads.items()}
    far = perceptual_loss(LpipsAlex({**weights, **four_times}), clip, clip.flip(2)).item()
    assert far == pytest.approx(4 * near, rel=1e-4)
    sides = [feature.shape[-1] for feature in LpipsAlex({**weights, **heads})(clip[:, :, 0])]
    assert sides == [15, 7, 3, 3, 3]
    with pytest.raises(KeyError, match="lin4"):
        LpipsAlex({**weights, **dict(list(heads.items())[:4])})


def test_hinge_losses_at_their_corners():
    real, fake = torch.full((2, 1), 1.5), torch.full((2, 1), -1.5)
    assert hinge_critic_loss(real, fake).item() == 0
    assert hinge_critic_loss(fake, real).item() == pytest.approx(2.5)
    assert hinge_generator_loss(fake).item() == pytest.approx(1.5)


def test_lecam_punishes_distance_from_the_running_mean_of_the_other_side():
    lecam = LeCam(decay=0.5)
    real, fake = torch.full((4,), 2.0), torch.full((4,), -2.0)
    assert lecam(real, fake).item() == pytest.approx(2.0**2 + 2.0**2)  # the means are 0 at first
    lecam.update(real.mean(), fake.mean())
    assert (lecam.real.item(), lecam.fake.item()) == (1.0, -1.0)
    assert lecam(real, fake).item() == pytest.approx(3.0**2 + 3.0**2)
    assert set(lecam.state_dict()) == {"real", "fake"}


def test_the_critic_learns_to_tell_noise_from_a_ramp():
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=8)
    real = torch.linspace(-1, 1, 16).expand(4, 3, 5, 16, 16)
    fake = torch.rand(4, 3, 5, 16, 16) * 2 - 1
    adam = torch.optim.Adam(critic.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = hinge_critic_loss(critic(real), critic(fake))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert critic(real).shape[2:] == (2, 2, 2)  # scores blocks, not clips
