"""The rate of the network of video distances (I3D), with seeded random weights."""

import torch

from videoar.bench.gpu.measure import clip_rate
from videoar.bench.gpu.section import Result, Section
from videoar.evaluation.i3d import I3D, random_i3d

_SIDE_PX = 224


def run(section: Section) -> None:
    """Measure clips of 224 x 224 px."""
    network = random_i3d(0).to(section.device)
    for is_bf16 in (False, True):
        name = f"{section.workload.i3d_frames} frames, {'bf16' if is_bf16 else 'fp32'}"
        section.case(name, _rate, network, is_bf16)


@torch.no_grad()
def _rate(section: Section, result: Result, network: I3D, is_bf16: bool) -> None:
    batch, device = section.workload.i3d_batch, section.device
    shape = (batch, section.workload.i3d_frames, _SIDE_PX, _SIDE_PX, 3)
    video = torch.rand(shape, device=device) * 2 - 1
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
        clip_rate(lambda: network(video), device, batch, 1.5, result)
