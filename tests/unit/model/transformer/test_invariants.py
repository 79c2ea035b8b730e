"""What must hold for any transformer, by its number in the list of invariants.

4, 5, 6, 10 and 11 are those of the tokenizer, in its tests; more of 8, 9 and 16 is beside the code
that they are about. `pytest -k invariant` runs all.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.support.tiny_transformer import (
    PROMPTS,
    TINY,
    inputs_of,
    logits_of,
    make_bits,
    rows,
    tiny_transformer,
)
from videoar.model.schedule import SMALL_SQUARE, tokens_per_frame
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import Visibility
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.loss import bit_loss
from videoar.model.transformer.network import (
    VideoAR,
    flatten_bits,
    teacher_forcing_inputs,
)
from videoar.model.transformer.rope import AXIS_OF_SLOT, rotate, rotation
from videoar.model.transformer.sampling import (
    SamplerSettings,
    guidance_schedule,
    sample_bits,
)
from videoar.model.transformer.schemes import NextFrameNextScale, attention_cells


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


def test_invariant_01_frame_does_not_change_the_past_nor_its_own_first_scale(model):
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
def test_invariant_02_logits_do_not_depend_on_bits_of_the_same_or_later_scales(model, scale):
    bits = make_bits()
    changed = [b.clone() for b in bits]
    for k in range(scale, 3):
        changed[k][:, 1] ^= True
    moved = (logits_of(model, bits) - logits_of(model, changed)).abs()
    assert all(moved[:, rows(model, 1, k)].max() == 0.0 for k in range(scale + 1))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("history", "down"), [("full", "bilinear"), ("last_scale", "area")])
@torch.no_grad()
def test_invariant_03_cached_decoding_equals_one_masked_forward(history, down, dtype, error):
    changes = {"history": history, "window": 1, "rope": "center", "input_down": down}
    model = tiny_transformer(**changes).to(dtype)
    greedy = SamplerSettings(guidance=1.0, greedy=True)
    written = sample_bits(model, PROMPTS, 9, [0, 1], settings=greedy)
    layout, features = inputs_of(model, written.bits)
    text = model.encode_text(PROMPTS)
    cache = model.new_cache(layout, text)
    spans = [features[:, a:b] for a, b in zip(layout.offsets, layout.offsets[1:], strict=False)]
    cached = torch.cat([model(span, text, layout, cache=cache) for span in spans], dim=1)
    logits = logits_of(model, written.bits)
    assert (cached - logits).abs().max() < error
    wanted = flatten_bits(layout.scheme, written.bits)
    assert written.steps == 9
    assert torch.equal(logits[..., 1] > logits[..., 0], wanted)


def test_invariant_07_rope_is_one_dimensional_on_text_and_depends_on_distances_only():
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


def masks(keep=None, **changes):
    """Return the mask [tokens, tokens] of 4 frames and a prompt of 2 words and 1 padding."""
    layout = tiny_transformer(**changes).layout(13)
    text_mask = torch.tensor([[True, True, False]])
    return layout, Visibility.of(layout, text_mask, keep).dense(0, 3 + len(layout.block_l))[0, 0]


@pytest.mark.parametrize("history", ["full", "last_scale"])
def test_invariant_08_masks_of_frames_are_a_subset_and_leave_text_and_the_own_frame(history):
    layout, full = masks(history=history)
    keep = torch.zeros(1, 4, 4, dtype=torch.bool)
    keep[0].fill_diagonal_(fill_value=True)
    keep[0, 3, 1] = True
    _, windowed = masks(history=history, window=1)
    _, hidden = masks(keep, history=history)
    frame, own = layout.frame_l, layout.frame_l[:, None] == layout.frame_l
    for mask in (full, windowed, hidden):
        assert not (mask & ~full).any()
        assert mask[3:, :2].all()
        assert not mask[:, 2].any()
        assert not mask[:3, 3:].any()
        assert torch.equal(mask[:2, :2], torch.tensor([[True, False], [True, True]]))
        assert torch.equal(mask[3:, 3:][own], full[3:, 3:][own])
    assert not hidden[3:, 3:][frame == 3][:, frame == 2].any()
    past = [mask[3:, 3:][frame == 3][:, frame == 1] for mask in (hidden, full)]
    assert torch.equal(*past)
    assert past[0].any()
    all_kept = torch.ones(1, 4, 4, dtype=torch.bool)
    assert torch.equal(masks(all_kept, history=history, window=3)[1], full)


def test_invariant_12_guidance_has_the_end_points_of_the_paper(model):
    ucf, t2v = guidance_schedule("ucf"), guidance_schedule("t2v")
    assert (ucf(0, 0), ucf(1, 0), ucf(0, 1), ucf(1, 1)) == (1, 5, 10, 10)
    assert (t2v(0, 0), t2v(1, 1)) == (5, 3)
    steps = [i / 8 for i in range(9)]
    for falling in ([t2v(i, 0.5) for i in steps], [t2v(0.5, i) for i in steps]):
        assert falling == sorted(set(falling), reverse=True)
    plain = sample_bits(model, PROMPTS, 5, [1, 2], settings=SamplerSettings(guidance=1.0))
    almost = sample_bits(model, PROMPTS, 5, [1, 2], settings=SamplerSettings(guidance=1 + 1e-12))
    assert all(torch.equal(a, b) for a, b in zip(plain.bits, almost.bits, strict=True))
    single = tiny_transformer(scales=((3, 3),))  # one frame of one scale: both positions are 0
    for name in ("ucf", "t2v"):
        assert sample_bits(single, PROMPTS, 1, [1, 2], settings=SamplerSettings(name)).steps == 1


def test_invariant_13_loss_starts_at_ln_2_and_weights_sum_to_one():
    torch.manual_seed(0)
    model = VideoAR(PRESETS["tiny"])
    layout = model.layout(5)
    quantizer = MultiScaleBSQ(8, SMALL_SQUARE)
    pyramid = quantizer.pyramid(torch.randn(2, 8, 2, 8, 8))
    inputs = teacher_forcing_inputs(layout.scheme, pyramid.accumulated)
    logits = model(inputs, model.encode_text(PROMPTS), layout)
    labels = flatten_bits(layout.scheme, pyramid.bits)
    start = bit_loss(logits, labels, layout.weight_l).loss.item()
    assert start == pytest.approx(math.log(2), rel=0.05)
    assert layout.weight_l.sum().item() == pytest.approx(1)
    single = model.layout(9, ((2, 2),))
    logits, labels = 3 * torch.randn(2, 12, 8, 2), torch.rand(2, 12, 8) < 0.5
    mean = F.cross_entropy(logits.flatten(0, 2), labels.flatten().long())
    torch.testing.assert_close(bit_loss(logits, labels, single.weight_l).loss, mean)


@pytest.mark.parametrize(
    ("name", "stated"),
    [("tiny", 0.12e6), ("small", 36.0e6), ("L", 912.9e6), ("XL", 2006e6), ("4B", 4001e6)],
)
def test_invariant_14_presets_have_the_published_parameter_counts(name, stated):
    with torch.device("meta"):
        counted = VideoAR(PRESETS[name]).num_parameters()
    assert counted == pytest.approx(stated, rel=0.03 if name == "tiny" else 0.002)


def test_invariant_14_parameters_steps_sequence_and_cache_follow_their_formulas(model):
    c = PRESETS["tiny"]
    C, d, D = c.width, c.num_bits, c.text_width
    formula = (
        c.depth * (4 * C * C + 3 * C * c.ff_width + 2 * C) + C + (d * C + C) + (2 * d * C + 2 * d)
    )
    formula += (16 * C + C) + (D * C + C) + (C * C + C) + D + c.max_text_tokens * D
    assert VideoAR(c).num_parameters() - c.depth * 2 * c.head_width == formula
    wide = PRESETS["4B"].scheme_for(33)
    assert sum(block.num_tokens for block in wide.blocks) == 23_652
    assert (tokens_per_frame(wide.scales), len(wide.waves)) == (2_628, 90)
    assert len(NextFrameNextScale(5, SMALL_SQUARE).waves) == 30
    text = model.encode_text(PROMPTS)
    assert model.new_cache(model.layout(9), text).capacity == 5 + 3 * tokens_per_frame(TINY.scales)
    cells = {
        arm: attention_cells(NextFrameNextScale(5, SMALL_SQUARE, *arm))
        for arm in (("full",), ("last_scale", 1), ("last_scale", None))
    }
    assert [round(count / 1000) for count in cells.values()] == [226, 90, 140]


def test_invariant_15_seed_gives_the_same_bits_cached_or_not_alone_or_in_a_batch(model):
    single = tiny_transformer().float()
    for net in (model, single):
        together = sample_bits(net, PROMPTS, 9, [3, 4])
        alone = sample_bits(net, PROMPTS[1:], 9, [4])
        slow = sample_bits(net, PROMPTS, 9, [3, 4], settings=SamplerSettings(cached=False))
        for a, b, c in zip(together.bits, alone.bits, slow.bits, strict=True):
            assert torch.equal(a[1:], b)
            assert torch.equal(a, c)


def test_invariant_15_in_bf16_a_sample_does_not_depend_on_others_of_an_equal_padded_batch():
    half = tiny_transformer().bfloat16()
    first = sample_bits(half, PROMPTS, 9, [3, 4])
    other = sample_bits(half, ["one two three four five", PROMPTS[1]], 9, [5, 4])
    for a, b in zip(first.bits, other.bits, strict=True):
        assert torch.equal(a[1], b[1])
    assert not torch.equal(first.bits[2][0], other.bits[2][0])


@torch.no_grad()
def test_invariant_16_bf16_layers_change_log_odds_by_less_than_1_percent():
    model = tiny_transformer().float()
    bits = make_bits()
    exact = logits_of(model, bits).diff(dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = logits_of(model, bits)
    assert rounded.dtype == torch.float32
    assert (rounded.diff(dim=-1) - exact).norm() < 0.01 * exact.norm()


@pytest.mark.gpu
def test_invariant_16_flex_attention_equals_dense_attention_forward_and_backward_on_cuda():
    torch.manual_seed(0)
    model = VideoAR(PRESETS["tiny"]).cuda().train()
    model.head.weight.data.mul_(50)
    layout = model.layout(17)  # 5 frames of 130 tokens: more than one tile
    features = torch.randn(2, layout.offsets[-1], 8, device="cuda")
    keep = (torch.rand(2, 5, 5, device="cuda") < 0.5) | torch.eye(5, device="cuda").bool()
    passes = []
    for model.attention in ("dense", "flex"):
        model.zero_grad()
        logits = model(features, model.encode_text(PROMPTS), layout, keep_BTT=keep)
        logits.square().mean().backward()
        weights = model.named_parameters()
        passes.append({name: w.grad for name, w in weights if w.grad is not None})
        passes[-1]["logits"] = logits.detach()
    for name, dense in passes[0].items():
        assert (passes[1][name] - dense).norm() <= 1e-3 * dense.norm(), name
