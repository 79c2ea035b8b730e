"""Training steps of the headline preset at the UCF shape, by the real trainer, in bf16."""

from collections.abc import Iterator
from functools import partial

import torch

from videoar.bench.flops import training_flops
from videoar.bench.gpu.measure import (
    first_seconds,
    host_syncs,
    median_ms,
    peak_memory,
    release,
    synchronize,
)
from videoar.bench.gpu.record import Result, Section
from videoar.bench.gpu.subject import Subject
from videoar.bench.gpu.workload import Workload, captions
from videoar.model.transformer.layer import Checkpointing


def run(section: Section, workload: Workload) -> None:
    """Measure each step of the workload; every compiled one is compiled for its own shapes."""
    for index, (how, kind, batch) in enumerate(workload.steps):
        name = f"{workload.headline}, {how}, checkpointing {kind}, batch {batch}"
        held: list[Subject] = []
        measured = section.case(name, partial(_step, section, workload, (how, kind), batch, held))
        if index == 1 and measured:
            section.case(f"{name}: kernels", partial(_kernels, section, held[0], batch))
        held.clear()
        release(section.device)


def _step(
    section: Section,
    workload: Workload,
    how: tuple[str, Checkpointing],
    batch: int,
    held: list[Subject],
    result: Result,
) -> None:
    torch._dynamo.reset()
    subject = Subject(
        workload.presets[workload.headline], workload.num_frames, section.device,
        checkpointing=how[1], is_compiled="compiled" in how[0], is_dense="dense" in how[0],
    )  # fmt: skip
    held.append(subject)
    measure_step(section, subject, batch, result)


def _kernels(section: Section, subject: Subject, batch: int, result: Result) -> None:
    """Profile one step: milliseconds of the kernels that take most, and of all."""
    step = subject.step(batch)
    step()
    synchronize(section.device)
    with torch.profiler.profile() as profile:
        step()
        synchronize(section.device)
    is_gpu = section.device.type == "cuda"
    # The kernels alone: operators on the host have the time of their kernels, too.
    where = "CUDA" if is_gpu else "CPU"
    events = [event for event in profile.key_averages() if event.device_type.name == where]
    clock = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    times = {event.key[:120]: getattr(event, clock) / 1000 for event in events}
    result["all_ms"] = round(sum(times.values()), 2)
    longest = sorted(times, key=lambda key: -times[key])[:25]
    result["kernels_ms"] = {key: round(times[key], 3) for key in longest}


def measure_step(section: Section, subject: Subject, batch: int, result: Result) -> None:
    """Measure one training step: time, rates, memory, host synchronisations."""
    device, step = section.device, subject.step(batch)
    torch._dynamo.utils.counters.clear()
    result["parameters"] = subject.trainer.model.num_parameters()
    with peak_memory(device, result):
        result["first_step_s"] = round(first_seconds(step, device), 3)
        ms = median_ms(step, device, seconds=2.5)
    scheme = subject.cfg.scheme_for(subject.num_frames)
    tokens = batch * sum(block.num_tokens for block in scheme.blocks)
    flops = training_flops(subject.cfg, scheme, [len(text.split()) for text in captions(batch)])
    result |= {
        "step_ms": round(ms, 2), "clips_per_s": round(1000 * batch / ms, 2),
        "visual_tokens_per_s": round(1000 * tokens / ms), "flops": flops.total,
        "attention_share_of_flops": round(flops.attention / flops.total, 4),
    }  # fmt: skip
    result |= utilisation(section, flops.total, ms)
    result |= host_syncs(step, device)
    result["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]


def utilisation(section: Section, flops: int, ms: float) -> Result:
    """Return the rate of model FLOPs over the card's stated and its measured peak (MFU)."""
    rate, result = flops / (ms / 1000), {}
    for name, peak in _peaks(section):
        result[name] = round(rate / peak, 4)
    return result


def _peaks(section: Section) -> Iterator[tuple[str, float]]:
    for name, case, key in (
        ("mfu", "machine", "peak_bf16_flops"),
        ("mfu_of_measured_peak", "bf16 matrix product", "flops_per_s"),
    ):
        if peak := section.figure("a", case, key):
            yield name, peak
