"""Sampling of the headline preset at the UCF shape: latency of a clip, and clips per second.

Transformer only; the decoder of the tokenizer is measured by itself. With the paper's guidance,
which runs every prompt twice.
"""

from functools import partial

import torch

from videoar.bench.flops import sampling_flops
from videoar.bench.gpu.measure import host_syncs, median_ms, peak_memory
from videoar.bench.gpu.record import Result, Section
from videoar.bench.gpu.sections.training import utilisation
from videoar.bench.gpu.subject import build
from videoar.bench.gpu.workload import Workload, captions
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling import SamplerSettings, sample_bits


def run(section: Section, workload: Workload) -> None:
    """Measure; weights in bf16, then in fp32 with bf16 layers, then in fp32."""
    cfg = workload.presets[workload.headline]
    model = build(cfg, section.device).eval()
    name, sampled = workload.headline, workload.sampled
    case = partial(_sample, section, workload, model)
    for batch in (1, max(sampled)):
        section.case(
            f"{name}, bf16 autocast, batch {batch}", partial(case, batch, is_autocast=True)
        )
        section.case(f"{name}, fp32, batch {batch}", partial(case, batch))
    model.bfloat16()
    for batch in sampled:
        section.case(f"{name}, bf16 weights, batch {batch}", partial(case, batch))
    section.case(f"{name}, bf16 weights, batch 1, uncached", partial(case, 1, cached=False))


def _sample(  # noqa: PLR0913 - partially applied, the last ones are keyword-only
    section: Section,
    workload: Workload,
    model: VideoAR,
    batch: int,
    result: Result,
    *,
    cached: bool = True,
    is_autocast: bool = False,
) -> None:
    settings, prompts = SamplerSettings("ucf", cached=cached), captions(batch)
    passes: list[int] = []

    def work() -> None:
        with torch.autocast(section.device.type, dtype=torch.bfloat16, enabled=is_autocast):
            sampled = sample_bits(
                model, prompts, workload.num_frames, range(batch), settings=settings
            )
        passes.append(sampled.steps)

    with peak_memory(section.device, result):
        ms = median_ms(work, section.device, seconds=min(3.0, section.seconds_left / 4))
    scheme = model.cfg.scheme_for(workload.num_frames)
    lengths = [len(text.split()) for text in prompts]
    flops = sampling_flops(model.cfg, scheme, lengths, copies=2, cached=cached).total
    result |= {
        "ms": round(ms, 2), "passes": passes[-1], "ms_per_pass": round(ms / passes[-1], 3),
        "clips_per_s": round(1000 * batch / ms, 2), "flops": flops,
    }  # fmt: skip
    result |= utilisation(section, flops, ms)
    result |= host_syncs(work, section.device)
