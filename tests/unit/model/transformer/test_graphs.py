"""Recorded windows: replayed waves generate what computed ones generate."""

from functools import partial

import pytest
import torch

from tests.support.tape import record
from tests.support.tiny_transformer import TINY, tiny_transformer
from videoar.model.transformer.layer import Layer
from videoar.model.transformer.sampling import (
    APG,
    SamplerSettings,
    SlidingWindow,
    Waves,
    decoder,
    sample_bits,
)
from videoar.model.transformer.sampling.decoder import _rows_to_record
from videoar.model.transformer.sampling.graphs import RecordedWindows

PROMPTS = ["a red circle moving left", "blue square"]
FRAMES = 9


@pytest.fixture
def model():
    return tiny_transformer().float().eval()


@pytest.fixture
def windows(monkeypatch):
    """Record windows on the CPU; return how many are recorded."""
    recorders = []

    def recorder():
        recorders.append(record)
        return record

    recorded = RecordedWindows(recorder, idle_bytes=1e9)
    monkeypatch.setattr(decoder, "recorded_windows", lambda *_: recorded)
    return recorders


def clip(model, seed, prompts=PROMPTS, **options):
    settings = SamplerSettings(**({"guidance": "ucf"} | options.pop("settings", {})))
    seeds = range(seed, seed + len(prompts))
    return sample_bits(model, prompts, FRAMES, seeds, settings=settings, **options).bits


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"settings": {"greedy": True}},
        {"settings": {"guidance": 3.0, "guidance_interval": (0.0, 0.5)}},
        {"settings": {"guidance": 1.0, "temperature": [0.5, 1.0, 2.0][: len(TINY.scales)]}},
        {"settings": {"guidance": 3.0, "apg": APG()}},
        {"window": SlidingWindow(5)},
    ],
)
def test_replayed_waves_generate_the_same_bits(options, model, monkeypatch):
    others = [["green", "a purple triangle that grows"], PROMPTS, ["x", "y z"]]
    expected = [clip(model, i, texts, **options) for i, texts in enumerate(others)]
    recorded = RecordedWindows(lambda: record, idle_bytes=1e9)
    monkeypatch.setattr(decoder, "recorded_windows", lambda *_: recorded)
    for _ in range(2):
        found = [clip(model, i, texts, **options) for i, texts in enumerate(others)]
        assert all(map(same, found, expected))


def test_given_frames_are_copied_into_recorded_windows(model, windows):
    first = [clip(model, i) for i in range(4)]
    prefixes = [[bits[:, :1] for bits in of_clip] for of_clip in first]
    clips = [clip(model, 7, prefix_bits=prefix) for prefix in prefixes]
    assert len(windows) == 2
    for made, prefix in zip(clips, prefixes, strict=True):
        assert same([bits[:, :1] for bits in made], prefix)
    assert not same(clips[2], clips[3])


def test_batches_of_few_sizes_are_recorded(model, monkeypatch):
    texts = [f"prompt {i}" for i in range(5)]
    prefix = [bits[:, :1] for bits in clip(model, 9, texts)]
    expected = {
        n: clip(model, 0, texts[:n], prefix_bits=[p[:n] for p in prefix]) for n in (3, 4, 5)
    }
    recorders = []
    recorded = RecordedWindows(lambda: recorders.append(1) or record, idle_bytes=1e9)
    monkeypatch.setattr(decoder, "recorded_windows", lambda *_: recorded)
    for size in (3, 4, 3, 5, 5, 4):
        made = clip(model, 0, texts[:size], prefix_bits=[p[:size] for p in prefix])
        assert same(made, expected[size]), size
    assert len(recorders) == 2  # of 4 and of 8 rows
    assert [_rows_to_record(size) for size in (1, 2, 3, 7, 8, 9, 64)] == [1, 2, 4, 8, 8, 16, 64]


def test_window_is_recorded_at_the_second_clip_of_its_shape(model, windows):
    counts = []
    for _ in range(3):
        clip(model, 0)
        counts.append(len(windows))
    clip(model, 0, ["one"])
    assert counts == [0, 1, 1]
    clip(model, 0, settings={"guidance": 2.0})
    assert len(windows) == 1


def test_clips_of_one_shape_at_a_time_have_own_windows(model, windows):
    expected = [clip(model, 0), clip(model, 1)]
    settings = SamplerSettings("ucf")
    both = [Waves(model, PROMPTS, FRAMES, [i, i + 1], settings=settings) for i in range(2)]
    finished = [[], []]
    for pair in zip(*both, strict=True):
        for frames, wave in zip(finished, pair, strict=True):
            frames.extend(wave.finished)
    assert len(windows) == 2
    for frames, bits in zip(finished, expected, strict=True):
        for number, frame in enumerate(frames):
            assert same(frame.bits, [of_scale[:, number] for of_scale in bits])


def test_clip_that_is_left_early_leaves_a_window_that_works(model, windows):
    expected = clip(model, 3)
    for _ in range(2):
        waves = Waves(model, PROMPTS, FRAMES, [0, 1], settings=SamplerSettings("ucf"))
        next(waves)
        next(waves)
        del waves
    assert same(clip(model, 3), expected)
    assert len(windows) == 1


def test_other_weights_are_recorded_again(model, windows):
    clip(model, 0), clip(model, 0)
    model.to_bf16()
    first = clip(model, 0)
    assert len(windows) == 1
    assert same(clip(model, 0), first)
    assert len(windows) == 2


def test_other_kernels_are_recorded_again(model, windows):
    clip(model, 0), clip(model, 0)
    for layer in model.layers:  # as `compile_passes` does
        layer.before = partial(Layer.before_attention)
    clip(model, 0), clip(model, 0)
    assert len(windows) == 2


def test_idle_windows_above_the_limit_are_released(model, monkeypatch):
    recorded = RecordedWindows(lambda: record, idle_bytes=0)
    monkeypatch.setattr(decoder, "recorded_windows", lambda *_: recorded)
    first = [clip(model, 0) for _ in range(3)]
    assert same(first[0], first[2])
    assert recorded._idle == []
