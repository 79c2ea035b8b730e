"""The rate of the network of video distances (I3D), with seeded random weights."""

from functools import partial

import torch

from videoar.bench.gpu.measure import median_ms, peak_memory
from videoar.bench.gpu.record import Result, Section
from videoar.bench.gpu.workload import Workload
from videoar.evaluation.i3d import I3D, random_i3d

_SIDE_PX = 224


def run(section: Section, workload: Workload) -> None:
    """Measure clips of 224 x 224 px."""
    network = random_i3d(0).to(section.device)
    for is_bf16 in (False, True):
        name = f"{workload.i3d_frames} frames, {'bf16' if is_bf16 else 'fp32'}"
        section.case(name, partial(_rate, section, workload, network, is_bf16))


def _rate(
    section: Section, workload: Workload, network: I3D, is_bf16: bool, result: Result
) -> None:
    batch, device = workload.i3d_batch, section.device
    shape = (batch, workload.i3d_frames, _SIDE_PX, _SIDE_PX, 3)
    video = torch.rand(shape, device=device) * 2 - 1
    with (
        torch.no_grad(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16),
        peak_memory(device, result),
    ):
        ms = median_ms(lambda: network(video), device, seconds=1.5)
    result |= {"batch": batch, "ms": round(ms, 2), "clips_per_s": round(1000 * batch / ms, 2)}
