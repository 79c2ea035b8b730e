"""Training steps of the headline preset at the UCF shape, by the real trainer, in bf16."""

import torch

from videoar.bench.flops import training_flops
from videoar.bench.gpu.measure import release, step_rate, synchronize
from videoar.bench.gpu.section import Result, Section
from videoar.bench.gpu.subject import Subject
from videoar.bench.gpu.workload import captions
from videoar.model.transformer.layer import Checkpointing


def run(section: Section) -> None:
    """Measure each step of the workload; every compiled one is compiled for its own shapes."""
    for index, (how, kind, batch) in enumerate(section.workload.steps):
        name = f"{section.workload.headline}, {how}, checkpointing {kind}, batch {batch}"
        held: list[Subject] = []
        measured = section.case(name, _step, how, kind, batch, held)
        if index == 1 and measured:
            section.case(f"{name}: kernels", _kernels, held[0], batch)
        held.clear()
        release(section.device)


def _step(
    section: Section, result: Result, how: str, kind: Checkpointing, batch: int, held: list[Subject]
) -> None:
    torch._dynamo.reset()
    workload = section.workload
    subject = Subject(
        workload.presets[workload.headline], workload.num_frames, section.device,
        checkpointing=kind, is_compiled="compiled" in how,
        attention="flex" if "FlexAttention" in how else "auto",
    )  # fmt: skip
    held.append(subject)
    measure_step(section, result, subject, batch)


def _kernels(section: Section, result: Result, subject: Subject, batch: int) -> None:
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


def measure_step(section: Section, result: Result, subject: Subject, batch: int) -> None:
    """Measure one training step: time, rates, memory, host synchronisations, graphs."""
    torch._dynamo.utils.counters.clear()
    result["parameters"] = subject.trainer.model.num_parameters()
    ms = step_rate(subject.step(batch), section.device, batch, 2.5, result)
    scheme = subject.cfg.scheme_for(subject.num_frames)
    tokens = batch * sum(block.num_tokens for block in scheme.blocks)
    flops = training_flops(subject.cfg, scheme, [len(text.split()) for text in captions(batch)])
    result |= utilisation(section, flops.total, ms) | {
        "visual_tokens_per_s": round(1000 * tokens / ms), "flops": flops.total,
        "attention_share_of_flops": round(flops.attention / flops.total, 4),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }  # fmt: skip


def utilisation(section: Section, flops: int, ms: float) -> Result:
    """Return the rate of model FLOPs over the card's stated and its measured peak (MFU)."""
    peaks = {
        "mfu": section.figure("a", "machine", "peak_bf16_flops"),
        "mfu_of_measured_peak": section.figure("a", "bf16 matrix product", "flops_per_s"),
    }
    rate = flops / (ms / 1000)
    return {name: round(rate / peak, 4) for name, peak in peaks.items() if peak}
