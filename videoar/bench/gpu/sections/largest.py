"""The largest presets that train on this card with one clip per step, and what they take.

No preset that fails is an error: that it does not fit is the result.
"""

from functools import partial

from videoar.bench.gpu.record import Result, Section
from videoar.bench.gpu.sections.training import measure_step
from videoar.bench.gpu.subject import CHECKPOINTING, Subject
from videoar.bench.gpu.workload import Workload
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.layer import Checkpointing


def run(section: Section, workload: Workload) -> None:
    """Try each preset at the large shape, from the largest; then with less recomputation."""
    for name, preset in reversed(workload.presets.items()):
        if preset.num_bits != workload.presets[workload.headline].num_bits:
            continue
        cfg = preset.model_copy(update={"scales": workload.long_scales})
        for kind in reversed(CHECKPOINTING):
            case = f"{name}, {workload.long_frames} frames, checkpointing {kind}, batch 1"
            if not section.case(case, partial(_step, section, cfg, workload.long_frames, kind)):
                break
    small = [name for name in workload.presets if name != workload.headline]
    for name in small[::-1][:2]:
        case = f"{name}, {workload.num_frames} frames, batch 8"
        cfg = workload.presets[name].model_copy(
            update={"scales": workload.presets[workload.headline].scales}
        )
        section.case(case, partial(_step, section, cfg, workload.num_frames, "none", batch=8))


def _step(
    section: Section,
    cfg: ModelConfig,
    frames: int,
    kind: Checkpointing,
    result: Result,
    batch: int = 1,
) -> None:
    subject = Subject(cfg, frames, section.device, checkpointing=kind)
    measure_step(section, subject, batch, result)
