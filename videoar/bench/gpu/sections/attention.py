"""FlexAttention against attention with an explicit mask, forward and backward, in bf16.

B batch, L tokens, N heads, E head width.
"""

from functools import partial

import torch

from videoar.bench.gpu.measure import first_seconds, median_ms, peak_memory
from videoar.bench.gpu.record import Result, Section
from videoar.bench.gpu.subject import Attend, attend_dense, attend_fast
from videoar.bench.gpu.workload import Workload
from videoar.model.transformer.attention import Visibility, compile_scheme
from videoar.model.transformer.config import ModelConfig

_TEXT = 16


def run(section: Section, workload: Workload) -> None:
    """Measure the large shape and one of a few thousand tokens, of the largest preset's heads."""
    cfg = [*workload.presets.values()][-1]
    for scales in (workload.long_scales[:-3], workload.long_scales):
        for history in ("full", "last_scale"):
            shape = cfg.model_copy(
                update={"scales": scales, "history": history, "window": cfg.window}
            )
            section.case(
                f"{len(scales)} scales, {history}", partial(_compare, section, workload, shape)
            )


def _compare(section: Section, workload: Workload, cfg: ModelConfig, result: Result) -> None:
    device = section.device
    layout = compile_scheme(cfg.scheme_for(workload.long_frames), device)
    text_mask_BP = torch.ones(1, _TEXT, dtype=torch.bool, device=device)
    visibility = Visibility.of(layout, text_mask_BP, None)
    tokens = len(visibility.block_L)
    shape = (4, 1, cfg.heads, tokens, cfg.head_width)
    qkvg = torch.randn(shape, device=device, dtype=torch.bfloat16)
    result["tokens"] = tokens
    attends = {"flex": attend_fast, "dense": attend_dense}
    for name, make in attends.items():
        build = partial(make, layout, visibility)
        # tiles are kept, so only the first mask of a layout takes this time
        own: Result = {"first_mask_ms": round(1000 * first_seconds(build, device), 3)}
        own["mask_ms"] = round(median_ms(build, device, most=5), 3)
        attend = build()
        with peak_memory(device, own):
            own["first_s"] = round(first_seconds(partial(_both, attend, qkvg), device), 3)
            ms = median_ms(partial(_both, attend, qkvg), device, seconds=1.5)
        own["forward_ms"] = round(
            median_ms(partial(_forward, attend, qkvg), device, seconds=1.0), 3
        )
        own["forward_backward_ms"] = round(ms, 3)
        result[name] = own
    times = [result[name]["forward_backward_ms"] for name in attends]
    result["speedup_of_flex"] = round(times[1] / times[0], 2)


def _forward(attend: Attend, qkvg: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return attend(*qkvg[:3])


def _both(attend: Attend, qkvg: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k, v = (each.detach().requires_grad_() for each in qkvg[:3])
    return torch.autograd.grad(attend(q, k, v), (q, k, v), qkvg[3])
