"""Every term of the tokenizer's loss, by what it must do."""

import math

import pytest
import torch
from safetensors.torch import save_file

from videoar.core.errors import ConfigError
from videoar.model.pretrained.lite0 import load_lite0
from videoar.model.pretrained.lite0_perceptual import Lite0Perceptual
from videoar.model.tokenizer.config import LossWeights
from videoar.model.tokenizer.discriminator import (
    LeCam,
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from videoar.model.tokenizer.losses import RandomFeatures, perceptual_loss, pixel_loss, psnr
from videoar.model.tokenizer.lpips import LpipsAlex, load_lpips

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


def test_perceptual_distance_is_zero_for_equal_videos_and_grows_with_noise():
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


def lpips_by_its_formula(weights, images, others):
    """Equation 1 of LPIPS on AlexNet, layer by layer: the mean over images."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    sides = [(x - shift[:, None, None]) / scale[:, None, None] for x in (images, others)]
    distance = 0
    places = [
        (0, 4, 2, False),
        (3, 1, 2, True),
        (6, 1, 1, True),
        (8, 1, 1, False),
        (10, 1, 1, False),
    ]
    for n, (place, stride, padding, is_pooled) in enumerate(places):
        kernel, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
        if is_pooled:
            sides = [torch.nn.functional.max_pool2d(x, 3, stride=2) for x in sides]
        sides = [torch.conv2d(x, kernel, bias, stride, padding).clamp(min=0) for x in sides]
        one, other = (x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10) for x in sides)
        head = weights[f"lin{n}.model.1.weight"]
        distance += (head * (one - other).square()).sum(1).mean()
    return distance.item()


def test_lpips_features_give_the_formula_of_the_paper():
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3),
              10: (256, 256, 3, 3)}  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    weights = {
        f"features.{i}.weight": 0.05 * torch.randn(shape, generator=draw)
        for i, shape in shapes.items()
    }
    weights |= {
        f"features.{i}.bias": 0.1 * torch.randn(shape[0], generator=draw)
        for i, shape in shapes.items()
    }
    heads = {
        f"lin{n}.model.1.weight": torch.rand(1, shape[0], 1, 1, generator=draw)
        for n, shape in enumerate(shapes.values())
    }
    clip = torch.rand(1, 3, 2, 64, 64, generator=draw) * 2 - 1
    other = clip.flip(4) * 0.5
    found = perceptual_loss(LpipsAlex(weights | heads), clip, other).item()
    frames = [video[0].transpose(0, 1) for video in (clip, other)]
    assert found == pytest.approx(lpips_by_its_formula(weights | heads, *frames), rel=1e-4)
    with pytest.raises(KeyError, match="lin4"):
        LpipsAlex({**weights, **dict(list(heads.items())[:4])})


def test_lite0_features_rank_small_damage_below_large_and_have_gradients_to_the_image_only():
    net = Lite0Perceptual(load_lite0())
    draw = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, 2, 48, 48, generator=draw) * 2 - 1
    maps = net(clip[0].transpose(0, 1))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 24, 24), (24, 12, 12), (40, 6, 6)]
    noise = torch.randn(clip.shape, generator=draw)
    assert perceptual_loss(net, clip, clip).item() == 0
    small, large = (perceptual_loss(net, clip, clip + s * noise).item() for s in (0.05, 0.3))
    assert 0 < small < large
    rebuilt = (clip + 0.3 * noise).requires_grad_()
    perceptual_loss(net, clip, rebuilt).backward()
    assert rebuilt.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in net.parameters())


def test_hinge_losses_have_their_values_at_the_corners():
    real, fake = torch.full((2, 1), 1.5), torch.full((2, 1), -1.5)
    assert hinge_discriminator_loss(real, fake).item() == 0
    assert hinge_discriminator_loss(fake, real).item() == pytest.approx(2.5)
    assert hinge_generator_loss(fake).item() == pytest.approx(1.5)


def test_lecam_penalizes_distance_from_the_running_mean_of_the_other_side():
    lecam = LeCam(decay=0.5)
    real, fake = torch.full((4,), 2.0), torch.full((4,), -2.0)
    assert lecam(real, fake).item() == pytest.approx(2.0**2 + 2.0**2)  # the means are 0 at first
    lecam.update(real.mean(), fake.mean())
    assert (lecam.real.item(), lecam.fake.item()) == (1.0, -1.0)
    assert lecam(real, fake).item() == pytest.approx(3.0**2 + 3.0**2)
    assert set(lecam.state_dict()) == {"real", "fake"}


def test_discriminator_learns_to_separate_noise_from_a_ramp():
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=8)
    real = torch.linspace(-1, 1, 16).expand(4, 3, 5, 16, 16)
    fake = torch.rand(4, 3, 5, 16, 16) * 2 - 1
    adam = torch.optim.Adam(critic.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = hinge_discriminator_loss(critic(real), critic(fake))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert critic(real).shape[2:] == (2, 2, 2)  # scores blocks, not clips


def test_lpips_heads_for_another_trunk_are_rejected(tmp_path):
    path = tmp_path / "w.safetensors"
    shapes = [
        (0, 64, 3, 11),
        (3, 192, 64, 5),
        (6, 384, 192, 3),
        (8, 256, 384, 3),
        (10, 256, 256, 3),
    ]
    weights = {}
    for i, (place, out, into, side) in enumerate(shapes):
        weights[f"features.{place}.weight"] = torch.zeros(out, into, side, side)
        weights[f"features.{place}.bias"] = torch.zeros(out)
        weights[f"lin{i}.model.1.weight"] = torch.zeros(1, out, 1, 1)
    save_file(weights, path)
    assert load_lpips(path) is not None
    save_file({**weights, "lin1.model.1.weight": torch.zeros(1, 128, 1, 1)}, path)
    with pytest.raises(ConfigError, match=r"w\.safetensors: holds no AlexNet"):
        load_lpips(path)
