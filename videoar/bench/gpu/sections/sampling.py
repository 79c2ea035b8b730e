"""Sampling of the headline preset at the UCF shape: latency of a clip, and clips per second.

Transformer only; the decoder of the tokenizer is measured by itself. With the paper's guidance,
which runs every prompt twice.
"""

import torch

from videoar.bench.flops import sampling_flops
from videoar.bench.gpu.measure import clip_rate, host_syncs
from videoar.bench.gpu.section import Result, Section
from videoar.bench.gpu.sections.training import utilisation
from videoar.bench.gpu.subject import build
from videoar.bench.gpu.workload import captions
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling import SamplerSettings, sample_bits


def run(section: Section) -> None:
    """Measure; weights in bf16, then in fp32 with bf16 layers, then in fp32."""
    name, sampled = section.workload.headline, section.workload.sampled
    model = build(section.workload.presets[name], section.device).eval()
    for batch in (1, max(sampled)):
        case = f"{name}, bf16 autocast, batch {batch}"
        section.case(case, _sample, model, batch, is_autocast=True)
        section.case(f"{name}, fp32, batch {batch}", _sample, model, batch)
    model.to_bf16()
    for batch in sampled:
        section.case(f"{name}, bf16 weights, batch {batch}", _sample, model, batch)
    case = f"{name}, bf16 weights, batch 1, uncached"
    section.case(case, _sample, model, 1, cached=False)


def _sample(
    section: Section,
    result: Result,
    model: VideoAR,
    batch: int,
    *,
    cached: bool = True,
    is_autocast: bool = False,
) -> None:
    settings, prompts = SamplerSettings("ucf", cached=cached), captions(batch)
    frames, device = section.workload.num_frames, section.device
    passes: list[int] = []

    def work() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_autocast):
            sampled = sample_bits(model, prompts, frames, range(batch), settings=settings)
        passes.append(sampled.steps)

    ms = clip_rate(work, device, batch, min(3.0, section.seconds_left / 4), result)
    lengths = [len(text.split()) for text in prompts]
    scheme = model.cfg.scheme_for(frames)
    flops = sampling_flops(model.cfg, scheme, lengths, copies=2, cached=cached).total
    result |= {"passes": passes[-1], "ms_per_pass": round(ms / passes[-1], 3), "flops": flops}
    result |= utilisation(section, flops, ms) | host_syncs(work, device)
