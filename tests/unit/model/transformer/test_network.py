import pytest
import torch

from tests.support.tiny_transformer import (
    PROMPTS,
    TINY,
    logits_of,
    make_bits,
    tiny_transformer,
)
from videoar.model.schedule import SMALL_SQUARE
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import random_frame_mask
from videoar.model.transformer.config import PRESETS, CFECConfig, ModelConfig
from videoar.model.transformer.corruption import draw_flips, flip_probabilities
from videoar.model.transformer.draws import ONE
from videoar.model.transformer.network import VideoAR, teacher_forcing_inputs
from videoar.model.transformer.schemes import NextFrameNextScale
from videoar.model.transformer.text import Text


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


def test_padding_of_shorter_prompts_changes_nothing(model):
    bits = make_bits(batch=2)
    alone = logits_of(model, [b[1:] for b in bits], PROMPTS[1:])
    torch.testing.assert_close(logits_of(model, bits)[1:], alone, rtol=1e-9, atol=1e-12)


def test_unconditional_text_replaces_content_but_not_length(model):
    text = model.encode_text(PROMPTS, torch.tensor([False, True]))
    assert text.lengths.tolist() == [5, 2]
    assert torch.equal(text.features_BPD[1, :2], model.unconditional[:2])
    assert torch.equal(text.features_BPD[0], model.encode_text(PROMPTS).features_BPD[0])


def test_positions_follow_figure_2_of_the_paper(model):
    scheme = model.layout(9).scheme
    assert scheme.positions(0) == ((0, 0, 0),)
    assert scheme.positions(1) == ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))
    assert scheme.positions(3) == ((1, 0, 0),)
    centred = NextFrameNextScale(1, ((1, 1), (3, 3)), rope="center")
    assert centred.positions(0) == ((0, 1, 1),)
    assert NextFrameNextScale(2, ((1, 1), (2, 2)), rope="seq1d").positions(2) == ((5, 5, 5),)


def test_invariant_08_random_frame_masks_only_hide_the_past():
    masked = random_frame_mask(torch.arange(64), 5, 0.5)
    assert masked.diagonal(dim1=1, dim2=2).all()
    assert 0.4 < masked.float().tril(-1).sum() / (64 * 10) < 0.6
    assert random_frame_mask(torch.arange(2), 5, 0.0).all()
    full = NextFrameNextScale(5, SMALL_SQUARE)
    windowed = NextFrameNextScale(5, SMALL_SQUARE, window=2)
    wide = NextFrameNextScale(5, SMALL_SQUARE, window=5)
    pairs = [(i, j) for i in range(30) for j in range(30)]
    assert all(full.visible(i, j) or not windowed.visible(i, j) for i, j in pairs)
    assert all(full.visible(i, j) == wide.visible(i, j) for i, j in pairs)


@pytest.mark.parametrize("history", ["full", "last_scale"])
def test_scheme_obeys_the_rules_of_every_scheme(history):
    scheme = NextFrameNextScale(4, ((1, 1), (2, 2)), history, 2)
    size = len(scheme.blocks)
    assert all(scheme.visible(i, i) for i in range(size))
    assert not any(scheme.visible(i, j) for i in range(size) for j in range(i + 1, size))
    assert [i for wave in scheme.waves for i in wave] == list(range(size))
    places = {(b.frame, b.scale) for b in scheme.blocks}
    assert len(places) == size == 8
    assert all(len(scheme.positions(i)) == b.num_tokens for i, b in enumerate(scheme.blocks))


def test_invariant_09_flips_follow_equation_8():
    p = flip_probabilities(torch.arange(4000), 9, 6, CFECConfig()) / ONE
    high = 0.25 + 0.01 * torch.arange(9.0)
    assert (p >= 0).all()
    assert (p <= high[:, None] + 1e-6).all()
    assert (p[:, 1:, 0] >= p[:, :-1, -1]).all()
    torch.testing.assert_close(
        p.mean(dim=(0, 2)),
        torch.tensor([0.125, 0.145, 0.155, 0.165, 0.175, 0.184, 0.194, 0.205, 0.214]),
        rtol=0, atol=0.003,
    )  # fmt: skip
    torch.testing.assert_close(
        p[:, :, 0].mean(0),
        torch.tensor([0.125, 0.193, 0.203, 0.215, 0.224, 0.232, 0.243, 0.253, 0.262]),
        rtol=0, atol=0.006,
    )  # fmt: skip


def test_corruption_is_clean_only_if_no_frame_can_have_a_flip():
    assert CFECConfig(p_max=0, delta=0).is_clean
    assert not CFECConfig(p_max=0, delta=0.01).is_clean  # from the second frame
    assert not CFECConfig(p_max=0.1, delta=0).is_clean
    with pytest.raises(ValueError, match=r"p_min=0\.3 is above p_max=0\.25"):
        CFECConfig(p_min=0.3)


def test_invariant_09_flips_change_later_labels_only_and_none_change_nothing():
    quantizer = MultiScaleBSQ(8, TINY.scales)
    latent = torch.randn(1, 8, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 2
    clean = quantizer.pyramid(latent)
    shapes = [(h, w, 8) for h, w in TINY.scales]
    none = draw_flips(torch.arange(1), 3, shapes, CFECConfig(p_max=0, delta=0))
    for a, b in zip(clean.accumulated, quantizer.pyramid(latent, none).accumulated, strict=True):
        assert torch.equal(a, b)
    none[0][:, 1] = True
    first = quantizer.pyramid(latent, none)
    assert torch.equal(first.bits[0], clean.bits[0])
    assert not torch.equal(first.bits[1], clean.bits[1])
    none[0][:, 1] = False
    none[2][:, 1] = True
    last = quantizer.pyramid(latent, none)
    assert all(torch.equal(a, b) for a, b in zip(last.bits, clean.bits, strict=True))
    scheme = NextFrameNextScale(3, TINY.scales)
    moved = (
        teacher_forcing_inputs(scheme, last.accumulated)
        != teacher_forcing_inputs(scheme, clean.accumulated)
    ).any(dim=(0, 2))
    touched = {(b.frame, b.scale) for i, b in enumerate(scheme.blocks) if moved.split(
        [block.num_tokens for block in scheme.blocks])[i].any()}  # fmt: skip
    assert touched == {(2, 0)}


def test_invariant_16_checkpointed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    model = VideoAR(TINY).train()
    layout, text = model.layout(5), Text(torch.randn(1, 2, 32), torch.ones(1, 2, dtype=torch.bool))
    features = torch.randn(1, layout.offsets[-1], 8)
    gradients = []
    for model.checkpointing in ("none", "selective", "full"):
        model.zero_grad()
        model(features, text, layout)[..., 0].square().sum().backward()
        gradients.append(model.layers[0].attention.qkv.weight.grad.clone())
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_impossible_configs_are_rejected():
    for change in ({"heads": 3}, {"max_scales": 2}, {"scheme": "other"}):
        with pytest.raises(ValueError, match="="):
            ModelConfig.model_validate({**PRESETS["tiny"].model_dump(), **change})


@pytest.mark.parametrize("change", [{"depth": 10**6}, {"depth": 1000, "width": 65_536}], ids=str)
def test_config_of_a_huge_network_is_rejected(change):
    with pytest.raises(ValueError, match=r"less than or equal to 1024|the limit is 1e"):
        ModelConfig.model_validate({**PRESETS["tiny"].model_dump(), **change})
