"""Whole clips: uniform numbers, guidance options, streams, windows, changes of the prompt."""

import dataclasses
import gc
import itertools
import math

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
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling import (
    APG,
    LatentFrame,
    SamplerSettings,
    SlidingWindow,
    Waves,
    guidance_schedule,
    sample,
    sample_bits,
    stream,
)
from videoar.model.transformer.sampling.guidance import guide

OTHER = ["a green square", "two words"]
GREEDY = SamplerSettings(guidance=2.0, greedy=True)
WINDOW = SlidingWindow(17, kept=2)  # 5 latent frames


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


@pytest.fixture(scope="module")
def pair():
    """A tokenizer and a model of its tokens."""
    torch.manual_seed(1)
    tokenizer = VideoTokenizer(TOKENIZERS["tiny"]).eval()
    torch.manual_seed(2)
    model = VideoAR(TINY.model_copy(update={"scales": tokenizer.cfg.scales})).eval()
    model.head.weight.data.mul_(50)
    return model, tokenizer


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def frames_of(bits, start, stop=None):
    return [of_scale[:, start:stop] for of_scale in bits]


@pytest.mark.parametrize("temperature", [1.0, 0.7, (0.5, 1.0, 2.0)], ids=str)
@torch.no_grad()
def test_bits_are_those_of_a_slow_loop_that_draws_block_by_block(model, temperature):
    settings = SamplerSettings("ucf", temperature)
    found = sample_bits(model, PROMPTS, 9, [3, 4], settings=settings)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    bits, blank = [torch.zeros_like(b) for b in found.bits], torch.ones(2, dtype=torch.bool)
    encode = model.encode_text
    for frame, scale in itertools.product(range(3), range(3)):
        block = rows(model, frame, scale)
        logits = logits_of(model, bits)[:, block]
        model.encode_text = lambda prompts: encode(prompts, blank)
        without = logits_of(model, bits)[:, block]
        model.encode_text = encode
        strength = guidance_schedule("ucf")(frame / 2, scale / 2)
        odds = (strength * logits + (1 - strength) * without).diff(dim=-1)[..., 0]
        divisor = temperature if isinstance(temperature, float) else temperature[scale]
        uniform = torch.stack([torch.rand(odds.shape[1:], generator=g) for g in generators])
        h, w = TINY.scales[scale]
        drawn = uniform < torch.sigmoid(odds / divisor)
        bits[scale][:, frame] = drawn.unflatten(1, (h, w))
    assert same(bits, found.bits)


def test_guidance_outside_of_its_interval_is_1_and_costs_no_rows_after_the_last_guided_block(model):
    only_first = SamplerSettings("ucf", guidance_interval=(0.0, 0.4))
    blocks = model.layout(9).scheme.blocks
    strengths = only_first.strengths(blocks)
    assert strengths == [1, 1, 1, 3, 1, 1, 5, 1, 1]
    sizes = []
    hook = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    found = sample_bits(model, PROMPTS, 9, [3, 4], settings=only_first)
    assert sizes == [4] * 7 + [2] * 2
    slow = SamplerSettings("ucf", guidance_interval=(0.0, 0.4), cached=False)
    assert same(found.bits, sample_bits(model, PROMPTS, 9, [3, 4], settings=slow).bits)
    sizes.clear()
    given = frames_of(found.bits, 0, 2)
    free = SamplerSettings("ucf", guidance_interval=(0.6, 0.6))  # no scale is there
    sample_bits(model, PROMPTS, 9, [3, 4], settings=free, prefix_bits=given)
    assert sizes == [2] * 3
    hook.remove()


def test_guidance_of_strength_1_is_the_conditional_model_bit_by_bit():
    draw = torch.Generator().manual_seed(0)
    with_text, without = 100 * torch.randn(2, 1, 50, 8, generator=draw)
    strength = torch.tensor([1.0, 3.0]).repeat(25)[:, None]
    guided = guide(with_text, without, strength)
    assert torch.equal(guided[:, ::2], with_text[:, ::2])
    torch.testing.assert_close(guided[:, 1::2], (3 * with_text - 2 * without)[:, 1::2])


@pytest.mark.parametrize(("eta", "threshold"), [(0.0, 0.05), (0.3, 0.5), (1.0, math.inf)])
def test_projected_guidance_keeps_what_is_orthogonal_to_the_conditional_logits(eta, threshold):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 2, generator=draw).double()
    guided = APG(eta, threshold).guide(*logits, torch.full((4, 1), 34.0))
    for row, found in enumerate(guided):
        conditional, unconditional = (each[row].flatten() for each in logits)
        difference = conditional - unconditional
        difference *= min(1.0, threshold / float(difference.norm() / math.sqrt(len(difference))))
        unit = conditional / conditional.norm()
        parallel = (difference @ unit) * unit
        update = difference - parallel + eta * parallel
        torch.testing.assert_close(found.flatten(), conditional + 33 * update)
        if eta == 0:
            assert abs(float((found.flatten() - conditional) @ conditional)) < 1e-9
    if eta == 1:  # nothing is shortened or projected: plain guidance
        torch.testing.assert_close(guided, 34 * logits[0] - 33 * logits[1])


def test_projected_guidance_is_part_of_sampling_and_does_not_depend_on_the_batch(model):
    plain = sample_bits(model, PROMPTS, 9, [3, 4])
    unchanged = SamplerSettings(apg=APG(eta=1.0, norm_threshold=math.inf))
    assert same(sample_bits(model, PROMPTS, 9, [3, 4], settings=unchanged).bits, plain.bits)
    projected = SamplerSettings(34.0, temperature=0.4, apg=APG())
    together = sample_bits(model, PROMPTS, 9, [3, 4], settings=projected).bits
    assert not same(together, plain.bits)
    alone = sample_bits(model, PROMPTS[1:], 9, [4], settings=projected).bits
    assert same([each[1:] for each in together], alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": (1.0, 0.0)}, r"temperature 0\.0 is not"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval 0.5, 0.2 is not inside"),
        ({"guidance_interval": (0.0, 2.0)}, "is not inside"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**options)


@pytest.mark.parametrize("options", [{"eta": math.nan}, {"norm_threshold": 0.0}], ids=str)
def test_thresholds_of_projected_guidance_are_positive(options):
    with pytest.raises(ValueError, match="norm_threshold above 0"):
        APG(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": SamplerSettings(temperature=(1.0, 1.0))}, "2 temperatures for 3 scales"),
        ({"window": SlidingWindow(8)}, "8 frames are not"),
        ({"window": SlidingWindow(17, kept=5)}, "window of 5 latent frames cannot keep 5"),
        ({"window": SlidingWindow(17, kept=0)}, "cannot keep 0"),
        ({"window": SlidingWindow(1)}, "window of 1 latent frames cannot keep 1"),
        ({"window": SlidingWindow(17, reencode=True)}, "needs the tokenizer"),
        ({"window": WINDOW, "prefix_bits": make_bits(frames=9)}, "33 frames has no more"),
        ({"prompt_changes": {0: OTHER}}, "2 prompts from latent frame 0; expected 2, from a"),
        ({"prompt_changes": {9: OTHER}}, "after 0 and before 9"),
        ({"prompt_changes": {2: OTHER[:1]}}, "1 prompts from latent frame 2; expected 2"),
    ],
    ids=str,
)  # fmt: skip
def test_tasks_are_checked_before_the_first_pass(changes, message):
    with torch.device("meta"):
        model = VideoAR(TINY)
    with pytest.raises(ValueError, match=message):
        sample_bits(model, PROMPTS, 33, [0, 1], **changes)


def test_another_grid_has_its_own_schedule(pair):
    model, tokenizer = pair
    wide = tokenizer.cfg.for_size(24, 40)
    made = sample(model, tokenizer, PROMPTS, 5, seeds=[3, 4], size_px=(24, 40))
    assert made.video_B3THW.shape == (2, 3, 5, 24, 40)
    assert made.steps == 2 * len(wide.scales)
    bits = sample_bits(model, PROMPTS, 5, [3, 4], scales=wide.scales).bits
    video = tokenizer.for_size(24, 40).detokenize(bits).clamp(-1, 1)
    assert torch.equal(made.video_B3THW, video)


def test_a_stream_yields_frames_when_their_last_scale_is_finished(pair):
    model, tokenizer = pair
    whole = sample(model, tokenizer, PROMPTS, 17, seeds=[3, 4])
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    parts = stream(model, tokenizer, PROMPTS, 17, seeds=[3, 4])
    assert not calls
    seen = [(part.video_B3THW, part.steps, len(calls)) for part in parts]
    hook.remove()
    assert [(video.shape[2], steps, done) for video, steps, done in seen] == [
        (1, 3, 3), (4, 6, 6), (4, 9, 9), (4, 12, 12), (4, 15, 15),
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat([video for video, *_ in seen], dim=2), whole.video_B3THW)
    with pytest.raises(ValueError, match="no prompts"):  # when it is called, not when it is read
        stream(model, tokenizer, [], 17)


def test_a_window_continues_the_bits_of_the_one_before(model):
    made = sample_bits(model, PROMPTS, 41, [0, 1], settings=GREEDY, window=WINDOW)
    assert made.bits[0].shape[1] == 11
    assert made.steps == 3 * 11
    wanted = sample_bits(model, PROMPTS, 17, [0, 1], settings=GREEDY).bits
    assert same(frames_of(made.bits, 0, 5), wanted)
    for start in (3, 6):
        given = frames_of(made.bits, start, start + 2)
        wanted = sample_bits(model, PROMPTS, 17, [0, 1], settings=GREEDY, prefix_bits=given).bits
        assert same(frames_of(made.bits, start, start + 5), wanted)
    short = sample_bits(model, PROMPTS, 13, [0, 1], window=WINDOW)
    assert same(short.bits, sample_bits(model, PROMPTS, 13, [0, 1]).bits)


def test_samples_of_windows_depend_on_their_seed_alone_and_not_on_the_cache(model):
    together = sample_bits(model, PROMPTS, 33, [3, 4], window=WINDOW).bits
    alone = sample_bits(model, PROMPTS[1:], 33, [4], window=WINDOW).bits
    assert same([each[1:] for each in together], alone)
    slow = SamplerSettings(cached=False)
    assert same(
        together, sample_bits(model, PROMPTS, 33, [3, 4], window=WINDOW, settings=slow).bits
    )
    assert not same(frames_of(together, 2, 5), frames_of(together, 5, 8))


def test_a_prompt_holds_from_its_frame_on(model):
    free = sample_bits(model, PROMPTS, 17, [0, 1], settings=GREEDY).bits
    made = sample_bits(
        model, PROMPTS, 17, [0, 1], settings=GREEDY, prompt_changes={2: OTHER, 4: PROMPTS}
    )
    assert made.steps == 3 * 5
    assert same(frames_of(made.bits, 0, 2), frames_of(free, 0, 2))
    given = frames_of(free, 0, 2)
    wanted = sample_bits(model, OTHER, 17, [0, 1], settings=GREEDY, prefix_bits=given).bits
    assert same(frames_of(made.bits, 2, 4), frames_of(wanted, 2, 4))
    given = frames_of(wanted, 0, 4)
    last = sample_bits(model, PROMPTS, 17, [0, 1], settings=GREEDY, prefix_bits=given).bits
    assert same(made.bits, last)
    windowed = sample_bits(
        model, PROMPTS, 33, [0, 1], settings=GREEDY, window=WINDOW, prompt_changes={6: OTHER}
    ).bits
    given = frames_of(windowed, 4, 6)
    wanted = sample_bits(model, OTHER, 13, [0, 1], settings=GREEDY, prefix_bits=given).bits
    assert same(frames_of(windowed, 6, 8), frames_of(wanted, 2, 4))
    task = {"window": WINDOW, "prompt_changes": {6: OTHER}}
    drawn = [
        sample_bits(model, PROMPTS, 33, [3, 4], **each).bits for each in (task, {"window": WINDOW})
    ]
    assert same(*(frames_of(each, 0, 6) for each in drawn))
    assert not same(*(frames_of(each, 6, 7) for each in drawn))


@pytest.mark.parametrize("prefix", [0, 2, 6])
@pytest.mark.parametrize("cut", [7, 8])
def test_a_resumed_clip_is_the_one_whose_prompt_changes_there(model, prefix, cut):
    given = make_bits(3, frames=prefix) if prefix else None
    task = {"window": WINDOW, "prefix_bits": given}
    before = Waves(model, PROMPTS, 41, [3, 4], prompt_changes={9: OTHER}, **task)
    frames = [frame for wave in before for frame in wave.finished][:cut]
    alone = [
        dataclasses.replace(f, bits=[b[1:] for b in f.bits], latent_BKHW=f.latent_BKHW[1:])
        for f in frames
    ]
    changes = {cut: OTHER, 9: PROMPTS}
    rest = {"resumed": alone, "window": WINDOW, "prompt_changes": {9: PROMPTS[1:]}}
    waves = Waves(model, OTHER[1:], 41, [4], **rest)
    resumed = list(waves)
    wanted = sample_bits(model, PROMPTS, 41, [3, 4], prompt_changes=changes, **task)
    found = [frame.bits for wave in resumed for frame in wave.finished]
    assert len(found) == 11 - cut
    for number, bits in enumerate(found, start=cut):
        assert same(bits, [of_scale[1:, number] for of_scale in wanted.bits])
    assert [wave.frame for wave in resumed[::3]] == list(range(cut, 11))
    assert resumed[-1].steps == waves.total == wanted.steps


def test_frames_that_are_encoded_again_are_those_of_the_tokenizer(pair):
    model, tokenizer = pair
    window = SlidingWindow(17, kept=2, reencode=True)
    task = {"settings": GREEDY, "window": window}
    made = sample(model, tokenizer, PROMPTS, 29, **task)
    assert made.video_B3THW.shape[2] == 29
    assert made.steps == 3 * 8
    first = sample(model, tokenizer, PROMPTS, 17, settings=GREEDY).video_B3THW
    assert torch.equal(made.video_B3THW[:, :, :17], first)
    given = tokenizer.tokenize(first[:, :, -5:])
    second = sample(model, tokenizer, PROMPTS, 17, settings=GREEDY, prefix_bits=given)
    torch.testing.assert_close(made.video_B3THW[:, :, 17:], second.video_B3THW[:, :, 5:])
    parts = list(stream(model, tokenizer, PROMPTS, 29, **task))
    assert [part.video_B3THW.shape[2] for part in parts] == [1] + [4] * 7
    streamed = torch.cat([part.video_B3THW for part in parts], dim=2)
    torch.testing.assert_close(streamed, made.video_B3THW)
    kept = sample(model, tokenizer, PROMPTS, 29, settings=GREEDY, window=WINDOW).video_B3THW
    assert not torch.equal(kept[:, :, 17:], made.video_B3THW[:, :, 17:])


@pytest.mark.slow
@pytest.mark.parametrize("reencode", [False, True])
def test_a_long_stream_keeps_the_frames_of_one_window(pair, reencode):
    model, tokenizer = pair
    window, alive = SlidingWindow(17, kept=2, reencode=reencode), []
    parts = stream(model, tokenizer, PROMPTS[:1], 81, settings=GREEDY, window=window)
    for number, _ in enumerate(parts):
        if number in (8, 20):  # equally far in their windows
            gc.collect()
            alive.append(sum(type(each) is LatentFrame for each in gc.get_objects()))
    assert alive[0] == alive[1] <= 6  # a window, and the frame that is being decoded


@torch.no_grad()
def test_weights_in_bf16_leave_the_head_in_fp32():
    model, half = tiny_transformer().float(), tiny_transformer().float().to_bf16()
    assert {w.dtype for w in (*half.head.parameters(), *half.norm.parameters())} == {torch.float32}
    assert half.start.dtype == half.layers[0].attention.qkv.weight.dtype == torch.bfloat16
    bits = make_bits()
    found, wanted = logits_of(half, bits), logits_of(model, bits)
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    made = sample_bits(half, PROMPTS, 9, [3, 4])
    assert same(made.bits, sample_bits(half, PROMPTS, 9, [3, 4]).bits)


@pytest.mark.parametrize("window", [None, WINDOW], ids=str)
def test_waves_number_passes_frames_and_scales_of_the_whole_clip(model, window):
    waves = Waves(model, PROMPTS, 41, [3, 4], settings=GREEDY, window=window)
    done = list(waves)
    # given waves of a window need no pass
    generated = [w for _, (w, *_) in itertools.groupby(done, key=lambda w: w.steps) if w.steps]
    assert [wave.steps for wave in generated] == list(range(1, waves.total + 1))
    assert waves.total == 11 * len(TINY.scales)
    assert [(w.frame, w.scale) for w in generated] == list(itertools.product(range(11), range(3)))
    whole = sample_bits(model, PROMPTS, 41, [3, 4], settings=GREEDY, window=window)
    finished = [frame for wave in done for frame in wave.finished]
    for scale, of_scale in enumerate(whole.bits):
        assert torch.equal(of_scale, torch.stack([f.bits[scale] for f in finished], dim=1))


def test_waves_of_two_batches_in_turns_equal_those_alone(model):
    def batches():
        return [Waves(model, [p], n, [5]) for p, n in zip(PROMPTS, (9, 17), strict=True)]

    def latents(frames):
        return torch.stack([frame.latent_BKHW for frame in frames])

    alone = [[f for wave in batch for f in wave.finished] for batch in batches()]
    turns = [[], []]
    for pair in itertools.zip_longest(*batches()):
        for of_batch, wave in zip(turns, pair, strict=True):
            of_batch.extend(wave.finished if wave else [])
    for first, second in zip(alone, turns, strict=True):
        assert torch.equal(latents(first), latents(second))


def test_latent_of_a_wave_is_refined_by_every_scale_up_to_the_finished_frame(model):
    latents = [(w.latent_BKHW.clone(), w.finished) for w in Waves(model, PROMPTS, 1, [0, 1])]
    assert all(not torch.equal(a, b) for (a, _), (b, _) in itertools.pairwise(latents))
    assert [len(finished) for _, finished in latents] == [0, 0, 1]
    assert torch.equal(latents[-1][0], latents[-1][1][0].latent_BKHW)


def test_prefix_that_is_longer_than_a_window_is_continued_as_generated_frames_are(model):
    whole = sample_bits(model, PROMPTS, 49, [3, 4], settings=GREEDY, window=WINDOW)
    # after 11 frames a window ends, after which the frames before are those that it keeps
    prefix = frames_of(whole.bits, 0, 11)
    task = {"settings": GREEDY, "window": WINDOW, "prefix_bits": prefix}
    assert same(sample_bits(model, PROMPTS, 49, [3, 4], **task).bits, whole.bits)
    waves = Waves(model, PROMPTS, 49, [3, 4], **task)
    assert [wave.frame for wave in waves][-1] == 12
    assert waves.total == 2 * len(TINY.scales)
