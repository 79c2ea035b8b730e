"""The largest presets that train on this card with one clip per step, and what they take.

No preset that fails is an error: that it does not fit is the result.
"""

from videoar.bench.gpu.section import Result, Section
from videoar.bench.gpu.sections.training import measure_step
from videoar.bench.gpu.subject import CHECKPOINTING, Subject
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.layer import Checkpointing


def run(section: Section) -> None:
    """Try each preset at the large shape, from the largest; then with less recomputation."""
    workload = section.workload
    headline = workload.presets[workload.headline]
    for name, preset in reversed(workload.presets.items()):
        if preset.num_bits != headline.num_bits:
            continue
        cfg, frames = (
            preset.model_copy(update={"scales": workload.long_scales}),
            workload.long_frames,
        )
        for kind in reversed(CHECKPOINTING):
            case = f"{name}, {frames} frames, checkpointing {kind}, batch 1"
            if not section.case(case, _step, cfg, frames, kind, 1):
                break
    small = [name for name in workload.presets if name != workload.headline]
    for name in small[::-1][:2]:
        cfg = workload.presets[name].model_copy(update={"scales": headline.scales})
        case = f"{name}, {workload.num_frames} frames, batch 8"
        section.case(case, _step, cfg, workload.num_frames, "none", 8)


def _step(
    section: Section, result: Result, cfg: ModelConfig, frames: int, kind: Checkpointing, batch: int
) -> None:
    subject = Subject(cfg, frames, section.device, checkpointing=kind)
    measure_step(section, result, subject, batch)
