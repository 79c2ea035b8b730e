"""Sampling: inputs are checked, given frames are kept."""

import math
from typing import get_args

import pytest
import torch

from tests.support.tiny_transformer import (
    PROMPTS,
    TINY,
    logits_of,
    make_bits,
    rows,
    tiny_transformer,
)
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import GuidanceName
from videoar.model.transformer.network import VideoAR, flatten_bits
from videoar.model.transformer.sampling import (
    GUIDANCE,
    SamplerSettings,
    guidance_schedule,
    sample,
    sample_bits,
)


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


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


def test_repeated_scale_has_a_pass_of_its_own_cached_or_not():
    model = tiny_transformer(scales=((1, 1), (2, 2), (2, 2), (3, 3)))
    cached, slow = (
        sample_bits(model, PROMPTS, 9, [0, 1], settings=SamplerSettings(cached=cached))
        for cached in (True, False)
    )
    assert (cached.steps, slow.steps) == (12, 12)
    assert all(map(torch.equal, cached.bits, slow.bits))
    assert not torch.equal(cached.bits[1], cached.bits[2])


def test_sample_has_the_requested_frames_at_any_time_stride():
    shape = TOKENIZERS["tiny"].model_copy(update={"time_downs": (0,)})
    same = {"scales": shape.scales, "time_stride": 2}
    tokenizer = VideoTokenizer(shape)
    halved = VideoAR(TINY.model_copy(update=same))
    assert sample(halved, tokenizer, PROMPTS, num_frames=7).video_B3THW.shape == (2, 3, 7, 32, 32)
    for change in ({"time_stride": 4}, {"scales": TINY.scales}):
        other = VideoAR(TINY.model_copy(update={**same, **change}))
        with pytest.raises(ValueError, match=f"has {next(iter(change))} .*, its tokenizer"):
            sample(other, tokenizer, PROMPTS, num_frames=9)


def test_guidance_is_a_named_schedule_or_a_constant():
    assert guidance_schedule(2)(0.3, 0.4) == 2.0
    assert set(get_args(GuidanceName)) == set(GUIDANCE)
