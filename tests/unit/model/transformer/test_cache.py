"""The cache holds what later blocks see and nothing else, for any rule of visibility."""

import pytest
import torch

from tests.support.reference_transformer import reference
from tests.support.tiny_transformer import PROMPTS, TINY, inputs_of, make_bits, tiny_transformer
from videoar.model.schedule import SMALL_SQUARE, scale_schedule, tokens_per_frame
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer import layer
from videoar.model.transformer.attention import attend, compile_scheme
from videoar.model.transformer.cache import KVCache
from videoar.model.transformer.sampling import SamplerSettings, sample_bits
from videoar.model.transformer.schemes import NextFrameNextScale, attention_cells
from videoar.model.transformer.text import Text

RULES = [("full", None), ("full", 2), ("last_scale", None), ("last_scale", 1), ("last_scale", 3)]
WIDE = scale_schedule(24, 42)
TEXT = Text(torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))


def empty_cache(frames, scales, rule, given=0):
    layout = compile_scheme(NextFrameNextScale(frames, scales, *rule), torch.device("cpu"))
    return KVCache(layout, TEXT, torch.zeros(2, 1, 1, 3 + layout.offsets[-1], 8), 1, given)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("frames", "scales"), [(5, SMALL_SQUARE), (9, WIDE)], ids=["ucf", "4B"])
def test_a_cached_decode_computes_the_visible_pairs_exactly(frames, scales, rule):
    cache = empty_cache(frames, scales, rule)
    scheme, cells, most = cache.layout.scheme, 0, 0
    for index, block in enumerate(scheme.blocks):
        blocks = cache.begin(block.num_tokens)
        seen = [i for i in range(index + 1) if scheme.visible(index, i)]
        assert [*cache.blocks, *blocks] == seen
        cache.end(blocks)
        most = max(most, cache.length)
        cells += block.num_tokens * (cache.length - 3)
    assert cells == attention_cells(scheme)
    assert cache.capacity == most
    if (scales, rule) == (SMALL_SQUARE, ("last_scale", 1)):
        assert round(cells / 1000) == 90


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_memory_of_a_window_does_not_grow_with_time(rule):
    _, window = rule
    short, long = (empty_cache(frames, WIDE, rule).capacity for frames in (9, 33))
    assert (short == long) == (window is not None)
    whole = tokens_per_frame(WIDE)
    per_frame = whole if rule[0] == "full" else 24 * 42
    assert long == 3 + whole + per_frame * (window or 32)


class _EveryOther:
    """A scheme whose blocks see the first frame and every other scale before them."""

    def __init__(self, inner):
        self.blocks, self.requires, self.input_down = inner.blocks, inner.requires, "bilinear"
        self.waves = inner.waves
        self.positions, self.weight = inner.positions, inner.weight

    def visible(self, query, key):
        first = self.blocks[key].frame == 0 and self.blocks[key].scale == 1
        return key <= query and (first or (query - key) % 2 == 0)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("given", [0, 1, 4, 7])
@torch.no_grad()
def test_moved_keys_are_those_of_one_pass_over_all_tokens(rule, given):
    model = tiny_transformer(history=rule[0], window=rule[1])
    layout, features = inputs_of(model, make_bits(frames=5))
    text = model.encode_text(PROMPTS)
    wanted = model(features, text, layout)
    cache = model.new_cache(layout, text, given)
    spans = [(layout.offsets[0], layout.offsets[given + 1])]
    spans += zip(layout.offsets[given + 1 :], layout.offsets[given + 2 :], strict=False)
    found = [model(features[:, a:b], text, layout, cache=cache) for a, b in spans]
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=0, atol=1e-12)
    assert cache.num_bytes == 2 * 2 * 2 * 64 * cache.capacity * 8  # layers, K and V, rows, width


@torch.no_grad()
def test_a_scheme_with_gaps_is_masked_and_equals_one_pass():
    model = tiny_transformer()
    inner, features = inputs_of(model, make_bits(frames=4))
    layout = compile_scheme(_EveryOther(inner.scheme), model.device)
    text = model.encode_text(PROMPTS[:1])
    wanted = model(features[:1], text, layout)
    cache = model.new_cache(layout, text)
    spans = zip(layout.offsets, layout.offsets[1:], strict=False)
    found = [model(features[:1, a:b], text, layout, cache=cache) for a, b in spans]
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_span_of_half_a_block_is_rejected():
    model = tiny_transformer()
    layout, features = inputs_of(model, make_bits())
    text = model.encode_text(PROMPTS)
    with pytest.raises(ValueError, match="3 tokens from block 0 are no whole blocks"):
        model(features[:, :3], text, layout, cache=model.new_cache(layout, text))


@pytest.mark.parametrize("rule", RULES, ids=str)
@torch.no_grad()
def test_greedy_bits_are_those_of_the_uncached_and_of_the_slow_reference(monkeypatch, rule):
    model = tiny_transformer(history=rule[0], window=rule[1]).float()
    settings = [SamplerSettings(1.0, greedy=True, cached=cached) for cached in (True, False)]
    pairs = []

    def counted(q, k, v, mask):
        pairs.append((min(q.shape[2], k.shape[2] - 5), k.shape[2] - 5))  # 5 words
        return attend(q, k, v, mask)

    monkeypatch.setattr(layer, "attend", counted)
    cached = sample_bits(model, PROMPTS[:1], 13, [0], settings=settings[0]).bits
    layout, features = inputs_of(model, cached)
    assert sum(q * k for q, k in pairs) == 2 * attention_cells(layout.scheme)  # 2 layers
    monkeypatch.undo()
    uncached = sample_bits(model, PROMPTS[:1], 13, [0], settings=settings[1]).bits
    assert all(map(torch.equal, cached, uncached))

    text = model.encode_text(PROMPTS[:1])
    cache = model.new_cache(layout, text)
    spans = zip(layout.offsets, layout.offsets[1:], strict=False)
    logits = [model(features[:, a:b], text, layout, cache=cache) for a, b in spans]
    latent, flips = _as_flips(cached)
    slow, _, _ = reference(
        TINY.model_copy(update={"history": rule[0], "window": rule[1]}), model.state_dict(),
        text.features_BPD[0], latent, flips=flips,
    )  # fmt: skip
    torch.testing.assert_close(torch.cat(logits, dim=1)[0], slow, rtol=0, atol=1e-4)
    greedy = slow[..., 1] > slow[..., 0]
    wanted = [cached[b.scale][0, b.frame].flatten(0, 1) for b in layout.scheme.blocks]
    assert torch.equal(greedy, torch.cat(wanted))


def _as_flips(bits):
    """Return a latent and the flips by which the reference arrives at the given history."""
    quantizer = MultiScaleBSQ(8, TINY.scales)
    rebuilt = quantizer.accumulate(bits)
    latent, flips = rebuilt[-1], []
    for k, wanted in enumerate(bits):
        before = rebuilt[k - 1] if k else torch.zeros_like(latent)
        own = quantizer._down((latent - before).flatten(0, 1), TINY.scales[k]) > 0
        flips.append((own.permute(0, 2, 3, 1)[None] ^ wanted)[0])
    return latent[0].transpose(0, 1), flips
