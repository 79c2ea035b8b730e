"""FlexAttention against attention with an explicit mask, forward and backward, in bf16.

B batch, L tokens, N heads, E head width.
"""

from functools import partial

import torch

from videoar.bench.gpu.measure import first_seconds, median_ms, peak_memory
from videoar.bench.gpu.section import Result, Section
from videoar.bench.gpu.subject import Attend, attend_dense, attend_fast
from videoar.model.transformer.attention import Visibility, compile_scheme
from videoar.model.transformer.config import ModelConfig

_TEXT = 16


def run(section: Section) -> None:
    """Measure the large shape and one of a few thousand tokens, of the largest preset's heads."""
    cfg = [*section.workload.presets.values()][-1]
    for scales in (section.workload.long_scales[:-3], section.workload.long_scales):
        for history in ("full", "last_scale"):
            shape = cfg.model_copy(update={"scales": scales, "history": history})
            section.case(f"{len(scales)} scales, {history}", _compare, shape)


def _compare(section: Section, result: Result, cfg: ModelConfig) -> None:
    device = section.device
    layout = compile_scheme(cfg.scheme_for(section.workload.long_frames), device)
    text_mask_BP = torch.ones(1, _TEXT, dtype=torch.bool, device=device)
    visibility = Visibility.of(layout, text_mask_BP, None)
    tokens = len(visibility.block_L)
    shape = (4, 1, cfg.heads, tokens, cfg.head_width)
    qkvg = torch.randn(shape, device=device, dtype=torch.bfloat16)
    result["tokens"] = tokens
    for name, make in {"flex": attend_fast, "dense": attend_dense}.items():
        build, own = partial(make, layout, visibility), dict[str, float]()
        result[name] = own
        # tiles are kept, so only the first mask of a layout takes this time
        own["first_mask_ms"] = round(1000 * first_seconds(build, device), 3)
        own["mask_ms"] = round(median_ms(build, device, most=5), 3)
        both, forward = (partial(work, build(), qkvg) for work in (_both, _forward))
        with peak_memory(device, own):
            own["first_s"] = round(first_seconds(both, device), 3)
            own["forward_backward_ms"] = round(median_ms(both, device, seconds=1.5), 3)
        own["forward_ms"] = round(median_ms(forward, device, seconds=1.0), 3)
    flex_ms, dense_ms = (result[name]["forward_backward_ms"] for name in ("flex", "dense"))
    result["speedup_of_flex"] = round(dense_ms / flex_ms, 2)


def _forward(attend: Attend, qkvg: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return attend(*qkvg[:3])


def _both(attend: Attend, qkvg: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k, v = (each.detach().requires_grad_() for each in qkvg[:3])
    return torch.autograd.grad(attend(q, k, v), (q, k, v), qkvg[3])
