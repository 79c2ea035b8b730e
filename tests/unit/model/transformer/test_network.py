import math
from typing import get_args

import pytest
import torch

from videoar.model.schedule import SMALL_SQUARE
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import Visibility, random_frame_mask
from videoar.model.transformer.config import PRESETS, CFECConfig, GuidanceName, ModelConfig
from videoar.model.transformer.corruption import draw_flips, flip_probabilities
from videoar.model.transformer.loss import bit_loss
from videoar.model.transformer.network import (
    VideoAR,
    flatten_bits,
    kv_bytes,
    teacher_forcing_inputs,
)
from videoar.model.transformer.rope import AXIS_OF_SLOT, rotate, rotation
from videoar.model.transformer.sampling import (
    GUIDANCE,
    SamplerSettings,
    guidance_schedule,
    sample,
    sample_bits,
)
from videoar.model.transformer.schemes import NextFrameNextScale, attention_cells
from videoar.model.transformer.text import Text

TINY = PRESETS["tiny"].model_copy(update={"scales": ((1, 1), (2, 2), (3, 3))})
PROMPTS = ["a red circle moving left", "blue square"]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = VideoAR(TINY).double().eval()
    net.head.weight.data.mul_(50)  # logits that matter
    return net


def make_bits(seed=0, frames=3, batch=2):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, frames, h, w, 8, generator=draw) < 0.5 for h, w in TINY.scales]


def logits_of(model, bits, prompts=PROMPTS):
    layout = model.layout(4 * bits[0].shape[1] - 3)
    history = MultiScaleBSQ(8, TINY.scales).accumulate(bits)
    with torch.no_grad():
        return model(
            teacher_forcing_inputs(layout.scheme, history), model.encode_text(prompts), layout
        )


def rows(model, frame, scale, frames=3):
    layout = model.layout(4 * frames - 3)
    return (layout.frame_l == frame) & (layout.scale_l == scale)


def test_frame_does_not_change_logits_of_the_past_nor_of_its_own_first_scale(model):
    bits, changed = make_bits(), make_bits(seed=1)
    mixed = [
        torch.cat([b[:, :1], c[:, 1:2], b[:, 2:]], 1) for b, c in zip(bits, changed, strict=True)
    ]
    moved = (logits_of(model, bits) - logits_of(model, mixed)).abs().amax(dim=(0, 2, 3))
    layout = model.layout(9)
    assert moved[(layout.frame_l == 0) | rows(model, 1, 0)].max() == 0.0
    assert moved[rows(model, 1, 1)].min() > 0
    assert moved[layout.frame_l == 2].min() > 0


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_logits_do_not_depend_on_bits_of_the_same_or_later_scales(model, scale):
    bits = make_bits()
    changed = [b.clone() for b in bits]
    for k in range(scale, 3):
        changed[k][:, 1] ^= True
    moved = (logits_of(model, bits) - logits_of(model, changed)).abs()
    assert all(moved[:, rows(model, 1, k)].max() == 0.0 for k in range(scale + 1))


@pytest.mark.parametrize("history", ["full", "last_scale"])
def test_cached_decoding_equals_one_masked_forward(history):
    torch.manual_seed(0)
    cfg = TINY.model_copy(update={"history": history, "window": 1, "rope": "center"})
    model = VideoAR(cfg).double().eval()
    model.head.weight.data.mul_(50)
    greedy = SamplerSettings(guidance=1.0, greedy=True)
    written = sample_bits(model, PROMPTS, 9, [0, 1], settings=greedy)
    logits = logits_of(model, written.bits)
    wanted = flatten_bits(model.layout(9).scheme, written.bits)
    assert written.steps == 9
    assert torch.equal(logits[..., 1] > logits[..., 0], wanted)


def test_seed_gives_the_same_bits_cached_or_not_alone_or_in_a_batch(model):
    together = sample_bits(model, PROMPTS, 9, [3, 4])
    alone = sample_bits(model, PROMPTS[1:], 9, [4])
    slow = sample_bits(model, PROMPTS, 9, [3, 4], settings=SamplerSettings(cached=False))
    for a, b, c in zip(together.bits, alone.bits, slow.bits, strict=True):
        assert torch.equal(a[1:], b)
        assert torch.equal(a, c)


def test_prefix_frames_are_kept_need_no_pass_and_change_the_rest(model):
    given = [b[:, :1] for b in make_bits(seed=5)]
    free = sample_bits(model, PROMPTS, 9, [0, 0])
    forced = sample_bits(model, PROMPTS, 9, [0, 0], prefix_bits=given)
    assert all(torch.equal(f[:, :1], g) for f, g in zip(forced.bits, given, strict=True))
    assert forced.steps == 6
    assert not torch.equal(forced.bits[-1][:, 1:], free.bits[-1][:, 1:])
    own = [b[:, :1] for b in free.bits]
    logits = logits_of(model, free.bits)
    greedy = SamplerSettings(guidance=1.0, greedy=True)
    continued = sample_bits(model, PROMPTS, 9, [0, 0], settings=greedy, prefix_bits=own)
    first = rows(model, 1, 0)
    first_bits = flatten_bits(model.layout(9).scheme, continued.bits)[:, first]
    assert torch.equal((logits[..., 1] > logits[..., 0])[:, first], first_bits)
    with pytest.raises(ValueError, match="has no more"):
        sample_bits(model, PROMPTS, 1, [0, 0], prefix_bits=given)


def test_padding_of_shorter_prompts_changes_nothing(model):
    bits = make_bits(batch=2)
    alone = logits_of(model, [b[1:] for b in bits], PROMPTS[1:])
    torch.testing.assert_close(logits_of(model, bits)[1:], alone, rtol=1e-9, atol=1e-12)


def test_unconditional_text_replaces_content_but_not_length(model):
    text = model.encode_text(PROMPTS, torch.tensor([False, True]))
    assert text.lengths.tolist() == [5, 2]
    assert torch.equal(text.features_BPD[1, :2], model.unconditional[:2])
    assert torch.equal(text.features_BPD[0], model.encode_text(PROMPTS).features_BPD[0])


def test_rope_is_one_dimensional_on_text_and_depends_on_distances_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 4, 16, dtype=torch.float64)
    index = torch.arange(4.0)[None, :, None].expand(1, 4, 3)
    plain = index[..., :1] * 10_000.0 ** (-2 * torch.arange(8) / 16)
    by_hand = torch.stack([plain.cos(), plain.sin()])[:, :, None]
    assert torch.equal(rotation(index, 16), by_hand)
    places = torch.randint(0, 9, (1, 4, 3)).float()
    shifted = places + torch.tensor([5.0, 5.0, 5.0])
    scores = [rotate(q, rotation(p, 16)) @ rotate(k, rotation(p, 16)).mT for p in (places, shifted)]
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)
    assert [AXIS_OF_SLOT.count(axis) for axis in range(3)] == [2, 3, 3]


def test_positions_follow_figure_2_of_the_paper(model):
    scheme = model.layout(9).scheme
    assert scheme.positions(0) == ((0, 0, 0),)
    assert scheme.positions(1) == ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))
    assert scheme.positions(3) == ((1, 0, 0),)
    centred = NextFrameNextScale(1, ((1, 1), (3, 3)), rope="center")
    assert centred.positions(0) == ((0, 1, 1),)
    assert NextFrameNextScale(2, ((1, 1), (2, 2)), rope="seq1d").positions(2) == ((5, 5, 5),)


def test_random_frame_masks_only_hide_the_past():
    draw = torch.Generator().manual_seed(0)
    masked = random_frame_mask((64, 5), 0.5, draw)
    assert masked.diagonal(dim1=1, dim2=2).all()
    assert 0.4 < masked.float().tril(-1).sum() / (64 * 10) < 0.6
    assert random_frame_mask((2, 5), 0.0, draw).all()
    full = NextFrameNextScale(5, SMALL_SQUARE)
    windowed = NextFrameNextScale(5, SMALL_SQUARE, window=2)
    wide = NextFrameNextScale(5, SMALL_SQUARE, window=5)
    pairs = [(i, j) for i in range(30) for j in range(30)]
    assert all(full.visible(i, j) or not windowed.visible(i, j) for i, j in pairs)
    assert all(full.visible(i, j) == wide.visible(i, j) for i, j in pairs)


def test_masks_show_text_to_all_and_hide_dropped_frames(model):
    layout = model.layout(9)
    text_mask = torch.tensor([[True, True, False]])
    keep = torch.ones(1, 3, 3, dtype=torch.bool)
    keep[0, 2, 0] = False
    stop = 3 + len(layout.block_l)
    mask = Visibility.of(layout, text_mask, keep).dense(0, stop)[0, 0]
    assert mask[3:, :2].all()
    assert not mask[:, 2].any()
    assert torch.equal(mask[:2, :2], torch.tensor([[True, False], [True, True]]))
    assert not mask[:3, 3:].any()
    frame = layout.frame_l
    assert not mask[3:, 3:][frame == 2][:, frame == 0].any()
    assert mask[3:, 3:][frame == 2][:, frame == 1].all()


def test_attention_density_and_steps_of_the_ucf_shape():
    cells = {
        arm: attention_cells(NextFrameNextScale(5, SMALL_SQUARE, *arm))
        for arm in (("full",), ("last_scale", 1), ("last_scale", None))
    }
    assert [round(count / 1000) for count in cells.values()] == [226, 90, 140]
    wide = PRESETS["4B"].scheme_for(33)
    assert sum(block.num_tokens for block in wide.blocks) == 23_652
    assert len(wide.waves) == 90
    assert len(NextFrameNextScale(5, SMALL_SQUARE).waves) == 30


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


def test_flips_follow_equation_8():
    draw = torch.Generator().manual_seed(0)
    p = flip_probabilities((4000, 9, 6), CFECConfig(), draw)
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


def test_flips_change_later_labels_only_and_none_change_nothing():
    quantizer = MultiScaleBSQ(8, TINY.scales)
    latent = torch.randn(1, 8, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 2
    clean = quantizer.pyramid(latent)
    shapes = [(h, w, 8) for h, w in TINY.scales]
    draw = torch.Generator().manual_seed(0)
    none = draw_flips(
        flip_probabilities((1, 3, 3), CFECConfig(p_max=0, delta=0), draw), shapes, draw
    )
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": "strong"}, "unknown guidance 'strong'; use a number or one of"),
        ({"guidance": math.nan}, "guidance nan is not finite"),
        ({"guidance": math.inf}, "guidance inf is not finite"),
        ({"temperature": 0.0}, r"temperature 0\.0 is not .* above 0 \(greedy=True takes"),
        ({"temperature": -1.0}, r"temperature -1\.0 is not"),
        ({"temperature": math.nan}, "temperature nan is not"),
        ({"temperature": math.inf}, "temperature inf is not"),
    ],
    ids=str,
)
def test_settings_that_no_bit_can_be_drawn_with_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**options)


PREFIX = make_bits(frames=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"seeds": [1]}, "2 prompts but 1 seeds"),
        ({"seeds": [1, -1]}, r"seed -1 is not between 0 and 2\^63 - 1"),
        ({"seeds": [2**63, 0]}, f"seed {2**63} is not"),
        ({"num_frames": 8}, r"8 frames are not 1 \+ a multiple of 4 \(use 5 or 9\)"),
        ({"num_frames": 0}, r"0 frames are not .* \(use 1 or 5\)"),
        ({"prefix_bits": PREFIX[:2]}, "prefix_bits has 2 scales, the model 3"),
        ({"prefix_bits": make_bits(frames=3)}, "has 3 latent frames, .* 9 frames has no more"),
        ({"prefix_bits": make_bits(frames=1, batch=1)}, r"is torch.bool \(1, .*expected bool \(2,"),
        ({"prefix_bits": [b[..., :4] for b in PREFIX]}, r"\(1, 1\) is .*4\), expected .*8\)"),
        ({"prefix_bits": [b.float() for b in PREFIX]}, "is torch.float32 .*expected bool"),
        ({"prefix_bits": [*PREFIX[:2], PREFIX[1]]}, r"scale \(3, 3\) is .*\(2, 1, 2, 2, 8\)"),
        ({"prefix_bits": [*PREFIX[:2], make_bits(frames=2)[2]]}, r"\(2, 2, 3, 3, 8\), expected"),
        ({"prefix_bits": [torch.tensor(True)] * 3}, r"torch.bool \(\), expected"),
    ],
    ids=[
        *("no prompts", "seeds", "negative seed", "large seed", "length", "no length", "scales"),
        *("frames", "batch", "bits", "dtype", "grid", "unequal frames", "no shape"),
    ],
)  # fmt: skip
def test_inputs_of_sampling_are_checked_before_the_first_pass(changes, message):
    with torch.device("meta"):  # a pass would fail: bits of meta tensors have no values
        model = VideoAR(TINY)
    inputs = {"prompts": PROMPTS, "num_frames": 9, "seeds": [0, 1]}
    with pytest.raises(ValueError, match=message):
        sample_bits(model, **(inputs | changes))


def test_sample_has_the_requested_frames_at_any_time_stride():
    shape = TOKENIZERS["tiny"].model_copy(update={"time_downs": (0,)})
    same = {"scales": shape.scales, "time_stride": 2}
    tokenizer = VideoTokenizer(shape)
    halved = VideoAR(TINY.model_copy(update=same))
    assert sample(halved, tokenizer, PROMPTS, num_frames=7).video_B3THW.shape == (2, 3, 7, 32, 32)
    for change in ({"time_stride": 4}, {"scales": TINY.scales}):
        other = VideoAR(TINY.model_copy(update={**same, **change}))
        with pytest.raises(ValueError, match=f"has {next(iter(change))} .*, the model"):
            sample(other, tokenizer, PROMPTS, num_frames=9)


def test_guidance_has_the_end_points_of_the_paper():
    ucf, t2v = guidance_schedule("ucf"), guidance_schedule("t2v")
    assert (ucf(0, 0), ucf(1, 0), ucf(0, 1), ucf(1, 1)) == (1, 5, 10, 10)
    assert (t2v(0, 0), t2v(1, 1)) == (5, 3)
    assert guidance_schedule(2)(0.3, 0.4) == 2.0
    assert set(get_args(GuidanceName)) == set(GUIDANCE)


def test_guidance_of_one_is_the_conditional_model(model):
    plain = sample_bits(model, PROMPTS, 5, [1, 2], settings=SamplerSettings(guidance=1.0))
    almost = sample_bits(model, PROMPTS, 5, [1, 2], settings=SamplerSettings(guidance=1 + 1e-12))
    assert all(torch.equal(a, b) for a, b in zip(plain.bits, almost.bits, strict=True))


@pytest.mark.parametrize(
    ("name", "stated"), [("small", 36.0e6), ("L", 912.9e6), ("XL", 2006e6), ("4B", 4001e6)]
)
def test_presets_have_the_published_parameter_counts(name, stated):
    with torch.device("meta"):
        assert VideoAR(PRESETS[name]).num_parameters() == pytest.approx(stated, rel=0.002)


def test_parameters_and_cache_follow_their_formulas():
    c = PRESETS["tiny"]
    C, d, D = c.width, c.num_bits, c.text_width
    formula = (
        c.depth * (4 * C * C + 3 * C * c.ff_width + 2 * C) + C + (d * C + C) + (2 * d * C + 2 * d)
    )
    formula += (16 * C + C) + (D * C + C) + (C * C + C) + D + c.max_text_tokens * D
    assert VideoAR(c).num_parameters() - c.depth * 2 * c.head_width == formula
    assert kv_bytes(PRESETS["4B"], 23_652) / 2**30 == pytest.approx(8.1, abs=0.05)


def test_loss_starts_at_ln_2_and_weights_sum_to_one():
    torch.manual_seed(0)
    model = VideoAR(PRESETS["tiny"])
    layout = model.layout(5)
    quantizer = MultiScaleBSQ(8, SMALL_SQUARE)
    pyramid = quantizer.pyramid(torch.randn(2, 8, 2, 8, 8))
    inputs = teacher_forcing_inputs(layout.scheme, pyramid.accumulated)
    logits = model(inputs, model.encode_text(PROMPTS), layout)
    labels = flatten_bits(layout.scheme, pyramid.bits)
    assert bit_loss(logits, labels, layout.weight_l).loss.item() == pytest.approx(
        math.log(2), rel=0.05
    )
    assert layout.weight_l.sum().item() == pytest.approx(1)
    single = NextFrameNextScale(2, ((2, 2),))
    assert {single.weight(i) for i in range(2)} == {1.0}


def test_checkpointed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    model = VideoAR(TINY).train()
    layout, text = model.layout(5), Text(torch.randn(1, 2, 32), torch.ones(1, 2, dtype=torch.bool))
    features = torch.randn(1, layout.offsets[-1], 8)
    gradients = []
    for model.checkpoint_activations in (False, True):
        model.zero_grad()
        model(features, text, layout)[..., 0].square().sum().backward()
        gradients.append(model.layers[0].attention.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_impossible_configs_are_rejected():
    for change in ({"heads": 3}, {"max_scales": 2}, {"scheme": "other"}):
        with pytest.raises(ValueError, match="="):
            ModelConfig.model_validate({**PRESETS["tiny"].model_dump(), **change})


@pytest.mark.parametrize("change", [{"depth": 10**6}, {"depth": 1000, "width": 65_536}], ids=str)
def test_config_of_a_huge_network_is_rejected(change):
    with pytest.raises(ValueError, match=r"less than or equal to 1024|the limit is 1e"):
        ModelConfig.model_validate({**PRESETS["tiny"].model_dump(), **change})
