"""Features per second of the networks of distances, I3D and EfficientNet-Lite0, and their parity.

Weights are random and seeded: speed and rounding do not depend on them. Tolerance of the parity
(norm of the difference over norm of the reference): 1e-3 of the CPU's features, in fp32 without
TF32, as stage `features` computes them.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoar.bench.gpu.measure import clip_rate, relative_error
from videoar.bench.gpu.section import ParityError, Result, Section
from videoar.evaluation.i3d import random_i3d
from videoar.evaluation.networks import NUM_STILLS, exact_convolutions
from videoar.model.pretrained.lite0 import SIDE_PX, Lite0

_TOLERANCE = 1e-3


class _Subject(NamedTuple):
    network: nn.Module
    shape: tuple[int, ...]
    """Of what it takes for one clip, or a still of it."""
    per_clip: int
    """Of these per clip."""

    def inputs(self, num_clips: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(num_clips * self.per_clip, *self.shape, generator=generator) * 2 - 1


def run(section: Section) -> None:
    """Compare each network with the CPU, then measure it in fp32 and in bf16."""
    torch.manual_seed(0)
    frames = section.workload.i3d_frames
    subjects = {
        f"I3D, {frames} frames": _Subject(random_i3d(0), (frames, SIDE_PX, SIDE_PX, 3), 1),
        f"Lite0, {NUM_STILLS} frames": _Subject(Lite0().eval(), (3, SIDE_PX, SIDE_PX), NUM_STILLS),
    }
    for name, subject in subjects.items():
        section.case(f"{name}, CPU and GPU", _parity, subject)
        section.case(f"{name}, fp32", _rate, subject, False)
        section.case(f"{name}, bf16", _rate, subject, True)


@torch.no_grad()
def _parity(section: Section, result: Result, subject: _Subject) -> None:
    inputs = subject.inputs(1)
    expected = subject.network.cpu()(inputs)
    with exact_convolutions():
        found = subject.network.to(section.device)(inputs.to(section.device))
    error = result["relative error"] = relative_error(found, expected)
    if not error <= _TOLERANCE:
        raise ParityError(f"features are {error:.2e} apart, above {_TOLERANCE:.0e}")


@torch.no_grad()
def _rate(section: Section, result: Result, subject: _Subject, is_bf16: bool) -> None:
    batch, device = section.workload.i3d_batch, section.device
    network, inputs = subject.network.to(device), subject.inputs(batch).to(device)
    with exact_convolutions(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
        clip_rate(lambda: network(inputs), device, batch, 1.5, result)
