"""Sampling: latency of a clip and clips per second, with CUDA graphs as users have them.

With the paper's guidance, which runs every prompt twice, and weights in bf16.
"""

import time
from collections.abc import Callable

import torch

from videoar.bench.flops import forward_flops
from videoar.bench.gpu.measure import clip_rate, host_syncs, median_ms, synchronize
from videoar.bench.gpu.section import ParityError, Result, Section
from videoar.bench.gpu.sections.training import utilisation
from videoar.bench.gpu.subject import build
from videoar.bench.gpu.workload import captions
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling import SamplerSettings, sample, sample_bits

_SETTINGS = SamplerSettings("ucf")


def run(section: Section) -> None:
    """Measure the headline preset at the small shape, then the largest preset at the large one."""
    workload, name = section.workload, section.workload.headline
    model = build(workload.presets[name], section.device).eval()
    section.case("recorded and computed waves, fp32", _equal, model)
    model.to_bf16()
    first, *others = workload.sampled
    section.case(f"{name}, batch {first}", _sample, model, first)
    section.case(f"{name}, batch {first}, with decoder", _with_decoder, model)
    for batch in others:
        section.case(f"{name}, batch {batch}", _sample, model, batch)
    section.case(f"{name}, compiled, batch {first}", _compiled, model, first)
    section.case(f"{name}, compiled, batch {others[-1]}", _sample, model, others[-1])
    section.case(f"{name}, compiled, batch {first}, with decoder", _with_decoder, model)
    del model
    large = list(workload.presets)[-1]
    cfg = workload.presets[large].model_copy(update={"scales": workload.long_scales})
    section.case(f"{large}, {workload.long_frames} frames, batch 1", _large, cfg)


def _clip(model: VideoAR, batch: int, frames: int) -> Callable[[], int]:
    prompts = captions(batch)
    return lambda: sample_bits(model, prompts, frames, range(batch), settings=_SETTINGS).steps


def _sample(section: Section, result: Result, model: VideoAR, batch: int) -> None:
    frames, device = section.workload.num_frames, section.device
    work = _clip(model, batch, frames)
    _warm_up(section, result, work)
    ms = clip_rate(work, device, batch, min(3.0, section.seconds_left / 4), result)
    result |= host_syncs(work, device)
    passes = work()
    lengths = [len(text.split()) for text in captions(batch)]
    # twice: guidance; all passes together compute one whole sequence, because they have a cache
    flops = 2 * forward_flops(model.cfg, model.cfg.scheme_for(frames), lengths).total
    result |= {"passes": passes, "ms_per_pass": round(ms / passes, 3), "flops": flops}
    result |= utilisation(section, flops, ms)


def _warm_up(section: Section, result: Result, work: Callable[[], object]) -> None:
    """Run the clip that is computed and the one that records."""
    for name in ("first_s", "record_s"):
        started = time.perf_counter()
        work()
        synchronize(section.device)
        result[name] = round(time.perf_counter() - started, 3)


def _compiled(section: Section, result: Result, model: VideoAR, batch: int) -> None:
    # On a CPU only a test compiles: capturing graphs is enough, and takes no C++ compiler.
    model.compile_passes("inductor" if section.device.type == "cuda" else "eager")
    _sample(section, result, model, batch)


def _with_decoder(section: Section, result: Result, model: VideoAR) -> None:
    """Measure one clip from its prompt to pixels."""
    device, prompts = section.device, captions(1)
    changes = {"num_bits": model.cfg.num_bits, "scales": model.cfg.scales}
    cfg = section.workload.tokenizer.model_copy(update=changes)
    with torch.device(device):
        tokenizer = VideoTokenizer(cfg).eval()

    def work() -> object:
        frames = section.workload.num_frames
        return sample(model, tokenizer, prompts, frames, settings=_SETTINGS).video_B3THW

    _warm_up(section, result, work)
    result["ms"] = round(median_ms(work, device, seconds=min(3.0, section.seconds_left / 4)), 2)


def _equal(section: Section, result: Result, model: VideoAR) -> None:
    """Compare the bits of two clips in one batch, computed (the first of a shape) and replayed."""
    model.head.weight.data.mul_(50)  # away from log-odds of 0
    frames, prompts = section.workload.num_frames, captions(2)

    def bits(seed: int) -> torch.Tensor:
        sampled = sample_bits(model, prompts, frames, [seed, seed + 1], settings=_SETTINGS)
        return torch.cat([of_scale.flatten() for of_scale in sampled.bits])

    expected = bits(7)
    bits(0)  # is recorded
    share = float((bits(7) != expected).double().mean())
    result["share of other bits"] = share
    model.head.weight.data.div_(50)
    if share > 1e-3:
        raise ParityError(f"{share:.2e} of the bits differ, above 1e-3")


def _large(section: Section, result: Result, cfg: ModelConfig) -> None:
    model = build(cfg, section.device).eval().to_bf16()
    work = _clip(model, 1, section.workload.long_frames)
    _warm_up(section, result, work)
    clip_rate(work, section.device, 1, min(6.0, section.seconds_left / 3), result)
    result["passes"] = work()
