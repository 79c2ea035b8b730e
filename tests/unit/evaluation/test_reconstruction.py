"""Reconstruction: in chunks as the whole clip, against known values, rejected below a minimum."""

import numpy as np
import pytest
import torch

from videoar.core.errors import ContractError, GateError
from videoar.evaluation import reconstruction
from videoar.evaluation.metrics import psnr_T
from videoar.evaluation.reconstruction import (
    BitUsage,
    Validation,
    per_scale_reconstructions,
    require_min_psnr,
    round_trip,
)
from videoar.evaluation.registry import open_extractor
from videoar.media.synthetic import draw, scenes
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer

torch.set_num_threads(1)
CLIPS = [draw(scene, 9, 32, 8.0) for scene in scenes()[:3]]


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = VideoTokenizer(TOKENIZERS["tiny"]).eval()
    for weight in net.parameters():
        if weight.ndim == 5:  # a new network does not look back; this one does
            torch.nn.init.kaiming_uniform_(weight, a=5**0.5)
    return net


def test_round_trip_in_chunks_equals_whole_clip(net):
    clip = np.concatenate([CLIPS[0], CLIPS[1], CLIPS[2], CLIPS[0][:2]])  # 29 = 1 + 4 * 7 frames
    whole, bits = round_trip(net, clip)
    assert whole.shape == clip.shape
    lengths = []
    net.encoder.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[2]))
    parts, bits_of_parts = round_trip(net, clip, chunk_pixels=11 * 32 * 32)  # rounds to 8 frames
    assert lengths == [9, 8, 8, 4]
    assert [tuple(b.shape) for b in bits_of_parts] == [tuple(b.shape) for b in bits]
    changed = [(a != b).float().mean() for a, b in zip(bits, bits_of_parts, strict=True)]
    assert max(changed) < 1e-3  # rounding
    assert np.abs(whole.astype(int) - parts).mean() < 0.1


def test_per_scale_reconstructions_long_clip_is_decoded_in_chunks(net):
    clip = np.concatenate([CLIPS[0]] * 9)[:73]  # 8 frames more than one chunk
    lengths = []
    net.decoder.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[2]))
    steps = list(per_scale_reconstructions(net, clip, chunk_pixels=64 * 32 * 32))
    assert lengths == [17, 2] * 3
    assert {step.shape for step in steps} == {clip.shape}
    assert np.array_equal(steps[-1], round_trip(net, clip)[0])


def test_per_scale_reconstructions_last_scale_equals_round_trip(net):
    steps = list(per_scale_reconstructions(net, CLIPS[0]))
    assert len(steps) == 3
    assert np.array_equal(steps[-1], round_trip(net, CLIPS[0])[0])
    assert not np.array_equal(steps[0], steps[-1])


def test_bit_usage_constant_bits_have_zero_entropy():
    even = torch.tensor([0, 1, 1, 0], dtype=torch.bool).view(1, 1, 2, 2, 1)
    rare = torch.tensor([0, 0, 0, 1], dtype=torch.bool).view(1, 1, 2, 2, 1)
    stuck = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    usage = BitUsage()
    for _ in range(2):
        usage.add([torch.cat([even, rare, stuck], dim=-1), stuck[:, :, :1, :1]])
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert usage.metrics() == {
        "scale_1/bit_entropy": pytest.approx((1 + quarter) / 4),
        "scale_2/bit_entropy": pytest.approx(0, abs=1e-9),
        "entropy/bits_per_frame": pytest.approx(4 * (1 + quarter)),
        "capacity/bits_per_frame": 4 * 4 + 1 * 2,
    }


def test_validation_metrics_equal_values_computed_by_hand(net):
    found = Validation(CLIPS, {}).measure(net)
    made = [round_trip(net, clip)[0] for clip in CLIPS]
    by_hand = np.mean([psnr_T(a, b).mean() for a, b in zip(CLIPS, made, strict=True)])
    assert found["psnr_db"] == pytest.approx(by_hand)
    assert found["capacity/bits_per_frame"] == (1 + 4 + 16) * 8
    assert 0 < found["entropy/bits_per_frame"] <= found["capacity/bits_per_frame"]
    assert not any("frechet" in name or "fvd" in name for name in found)
    assert Validation([], {}).measure(net) == {}


def test_validation_clips_of_two_sizes_are_measured_at_their_size(net):
    wide = draw(scenes()[3], 9, 48, 8.0)[:, :24]
    scales = [(1, 1), (2, 2), (2, 4), (3, 6)]
    rebuilt, bits = round_trip(net, wide)
    assert rebuilt.shape == wide.shape
    assert [tuple(of_scale.shape) for of_scale in bits] == [(1, 3, *s, 8) for s in scales]
    steps = list(per_scale_reconstructions(net, wide))
    assert len(steps) == 4
    assert np.array_equal(steps[-1], rebuilt)
    found = Validation([CLIPS[0], wide], {}).measure(net)
    alone = [Validation([clip], {}).measure(net) for clip in (CLIPS[0], wide)]
    for name in ("psnr_db", "ssim", "capacity/bits_per_frame"):
        assert found[name] == pytest.approx(np.mean([each[name] for each in alone]))
    assert found["scale_4/bit_entropy"] == pytest.approx(alone[1]["scale_4/bit_entropy"])
    with pytest.raises(ContractError, match=r"clips of 9x24x44 do not fit|9x24x44: do not fit"):
        round_trip(net, wide[:, :, :44])


@pytest.mark.slow
def test_validation_distance_name_has_number_of_clips(net):
    networks = {"frechet_random_i3d": open_extractor("random_i3d")}
    assert Validation(CLIPS[:2], networks).measure(net)["frechet_random_i3d_n2"] > 0
    with pytest.raises(GateError, match="no distance on 1 val clips"):
        Validation(CLIPS[:1], networks)
    with pytest.raises(ContractError, match="val clip 0: has 5 frames, random_i3d needs 9"):
        Validation([clip[:5] for clip in CLIPS], networks)


def test_require_min_psnr_below_minimum_raises_with_value(net):
    psnr_db = require_min_psnr(net, CLIPS, 1.0, "tokenize")
    assert psnr_db == pytest.approx(Validation(CLIPS, {}).measure(net)["psnr_db"])
    with pytest.raises(GateError, match=rf"tokenize.*{psnr_db:.2f} dB.*40 dB"):
        require_min_psnr(net, CLIPS, 40.0, "tokenize")
    with pytest.raises(GateError, match="no clip"):
        require_min_psnr(net, [], 1.0, "tokenize")


@pytest.mark.parametrize(
    ("half", "value", "message"),
    [
        ("encoder", torch.nan, "clip 0: latents are not finite"),
        ("encoder", 1e5, "clip 0: latents are not finite"),  # more than fp16 holds
        ("decoder", torch.nan, "clip 0: reconstructed pixels are not finite"),
    ],
)
def test_round_trip_non_finite_values_are_rejected(net, half, value, message):
    with torch.no_grad():
        net.get_submodule(half).conv_out.bias.fill_(value)
    with pytest.raises(ContractError, match=message):
        require_min_psnr(net, CLIPS, 0.0, "tokenize")
    with pytest.raises(ContractError, match=f"val {message}"):
        Validation(CLIPS, {}).measure(net)
    with pytest.raises(ContractError, match=r"clip 0: .* not finite"):
        list(per_scale_reconstructions(net, CLIPS[0], "clip 0"))


def test_round_trip_bits_that_decode_to_other_latents_are_rejected(net, monkeypatch):
    def flipped(*arguments):
        unpacked = unpack(*arguments)
        unpacked[1][0, 0, 0, 0] ^= 1
        return unpacked

    unpack = reconstruction.unpack_bits
    monkeypatch.setattr(reconstruction, "unpack_bits", flipped)
    with pytest.raises(ContractError, match="different latents"):
        require_min_psnr(net, CLIPS, 1.0, "tokenize")
