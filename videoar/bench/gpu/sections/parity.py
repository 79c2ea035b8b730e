"""Whether the GPU computes what the CPU computes, and fast paths what plain ones compute.

Tolerances (norm of the difference over norm of the reference):

    flex, bf16           at most twice the error of dense bf16 attention, both against dense fp32
    flex, fp32           1e-3 of dense fp32
    CPU against GPU      1e-3 in fp32 without TF32
    compiled             1e-3 of eager in fp32
    bf16 against fp32    5e-2 of the logits, 1e-2 of the loss
    checkpointing        1e-5 of the gradient in fp32

B batch, T latent frames, N heads, L tokens, E head width.
"""

import torch
from torch import Tensor

from videoar.bench.gpu.measure import relative_error
from videoar.bench.gpu.section import ParityError, Result, Section
from videoar.bench.gpu.subject import (
    CHECKPOINTING,
    Attend,
    attend_dense,
    attend_fast,
    build,
    compile_layers,
)
from videoar.bench.gpu.workload import captions, random_latents
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import Visibility, compile_scheme, random_frame_mask
from videoar.model.transformer.config import CFECConfig, ModelConfig
from videoar.model.transformer.corruption import draw_flips
from videoar.model.transformer.draws import TEXT, bernoulli
from videoar.model.transformer.loss import bit_loss
from videoar.model.transformer.network import VideoAR, flatten_bits, teacher_forcing_inputs
from videoar.model.transformer.sampling import SamplerSettings, sample_bits

_FRAMES = 17
_LAYOUTS: dict[str, dict[str, object]] = {
    "full": {},
    "window 2": {"window": 2},
    "last scale, window 1": {"history": "last_scale", "window": 1},
    "last scale": {"history": "last_scale"},
}


def run(section: Section) -> None:
    """Compare; what matters most comes first."""
    cfg = section.workload.parity
    section.case("attention: frames hidden", _attention, cfg, p_mask=0.3)
    cases = {
        "draws": _draws,
        "bits of equal latents": _quantizer,
        "bits of equal videos": _tokenizer,
        "CPU and GPU, fp32": _cpu_and_device,
        "bf16 and fp32": _bf16,
        "checkpointing": _checkpointing,
        "sampling, cached and uncached": _sampling,
        "compiled and eager": _compiled,
    }
    for name, compare in cases.items():
        section.case(name, compare, cfg)
    for name, changes in _LAYOUTS.items():
        section.case(f"attention: {name}", _attention, cfg.model_copy(update=changes))
    widths = {preset.head_width for preset in section.workload.presets.values()}
    for width in widths - {cfg.head_width}:
        wide = cfg.model_copy(update={"width": width * cfg.heads})
        section.case(f"attention: heads of {width}", _attention, wide)


def _check(result: Result, errors: dict[str, float], limits: dict[str, float] | float) -> None:
    """Keep errors; raise unless each is within its limit; NaN is not."""
    result |= errors
    if isinstance(limits, float):
        limits = dict.fromkeys(errors, limits)
    above = [
        f"{k} is {errors[k]:.2e}, above {v:.2e}" for k, v in limits.items() if not errors[k] <= v
    ]
    if above:
        raise ParityError(", ".join(above))


def _attention(section: Section, result: Result, cfg: ModelConfig, *, p_mask: float = 0.0) -> None:
    """Compare forward and backward passes of both attentions, with ragged text."""
    device = section.device
    layout = compile_scheme(cfg.scheme_for(_FRAMES), device)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 7, 16])
    text_mask_BP = (torch.arange(16) < lengths[:, None]).to(device)
    seed_B = torch.arange(3, device=device)
    keep = random_frame_mask(seed_B, layout.num_frames, p_mask) if p_mask else None
    visibility = Visibility.of(layout, text_mask_BP, keep)
    shape = (4, 3, cfg.heads, len(visibility.block_L), cfg.head_width)
    qkvg = torch.randn(shape, generator=generator).to(device)
    # Rows of padding attend to nothing that matters: their outputs are never read.
    qkvg[3] *= visibility.valid_BL[:, None, :, None]
    exact = _passes(attend_dense(layout, visibility), qkvg)
    flex32 = _passes(attend_fast(layout, visibility), qkvg)
    flex16, dense16 = (
        _passes(attend(layout, visibility), qkvg.bfloat16())
        for attend in (attend_fast, attend_dense)
    )
    errors, limits = {}, {}
    for i, name in enumerate(("output", "d_query", "d_key", "d_value")):
        errors[f"{name} fp32"] = relative_error(flex32[i], exact[i])
        errors[f"{name} bf16"] = relative_error(flex16[i], exact[i])
        errors[f"{name} dense bf16"] = relative_error(dense16[i], exact[i])
        limits[f"{name} fp32"] = 1e-3
        limits[f"{name} bf16"] = 2 * errors[f"{name} dense bf16"]
    _check(result, errors, limits)


def _passes(attend: Attend, qkvg: Tensor) -> list[Tensor]:
    """Return output and gradients; outputs of padding are zeroed by the incoming gradient."""
    q, k, v = (each.detach().clone().requires_grad_() for each in qkvg[:3])
    output = attend(q, k, v)
    is_read = (qkvg[3].abs().sum(-1, keepdim=True) > 0).to(output.dtype)
    return [output * is_read, *torch.autograd.grad(output, (q, k, v), qkvg[3])]


def _inputs(model: VideoAR, cfg: ModelConfig, batch: int = 3) -> tuple[Tensor, Tensor, list[str]]:
    """Return input features, bits and captions, computed on the CPU."""
    scheme = cfg.scheme_for(_FRAMES)
    frames = scheme.blocks[-1].frame + 1
    latents = random_latents((batch, frames, cfg.num_bits, *cfg.scales[-1])).transpose(1, 2)
    pyramid = MultiScaleBSQ(cfg.num_bits, cfg.scales).pyramid(latents)
    features = teacher_forcing_inputs(scheme, pyramid.accumulated)
    bits = flatten_bits(scheme, pyramid.bits)
    return features.to(model.device), bits.to(model.device), captions(batch)


def _pass(model: VideoAR, cfg: ModelConfig, precision: str = "fp32") -> dict[str, Tensor]:
    """Return logits, loss and all gradients of one pass."""
    features, bits, texts = _inputs(model, cfg)
    layout = model.layout(_FRAMES)
    model.zero_grad()
    is_bf16 = precision == "bf16"
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=is_bf16):
        logits = model(features, model.encode_text(texts), layout)
    loss = bit_loss(logits, bits, layout.weight_l).loss
    loss.backward()
    gradients = [w.grad.flatten() for w in model.parameters() if w.grad is not None]
    return {
        "logits": logits.detach(), "loss": loss.detach().reshape(1),
        "gradient": torch.cat(gradients).clone(),
    }  # fmt: skip


def _differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_error(a[name], b[name]) for name in a}


def _cpu_and_device(section: Section, result: Result, cfg: ModelConfig) -> None:
    model = build(cfg, torch.device("cpu"))
    expected = _pass(model, cfg)
    _check(result, _differences(_pass(model.to(section.device), cfg), expected), 1e-3)


def _bf16(section: Section, result: Result, cfg: ModelConfig) -> None:
    model = build(cfg, section.device)
    errors = _differences(_pass(model, cfg, "bf16"), _pass(model, cfg))
    _check(result, errors, {"logits": 5e-2, "loss": 1e-2})


def _checkpointing(section: Section, result: Result, cfg: ModelConfig) -> None:
    model = build(cfg, section.device).train()
    gradients: dict[str, Tensor] = {}
    for kind in CHECKPOINTING:
        model.checkpointing = kind
        gradients[kind] = _pass(model, cfg)["gradient"]
    errors = {kind: relative_error(each, gradients["none"]) for kind, each in gradients.items()}
    _check(result, errors, 1e-5)


def _compiled(section: Section, result: Result, cfg: ModelConfig) -> None:
    model = build(cfg, section.device).train()
    expected = _pass(model, cfg)
    compile_layers(model)
    _check(result, _differences(_pass(model, cfg), expected), 1e-3)


def _draws(section: Section, result: Result, cfg: ModelConfig) -> None:
    """Compare flips, dropped texts and hidden frames of equal seeds: they must be equal."""
    shapes = [(h, w, cfg.num_bits) for h, w in cfg.scales]
    drawn = []
    for where in (torch.device("cpu"), section.device):
        seed_B = (torch.arange(64) * 0x0123456789ABCDEF % 2**62).to(where)
        flips = draw_flips(seed_B, 5, shapes, CFECConfig())
        others = [bernoulli(seed_B, TEXT, 1, 0.1), random_frame_mask(seed_B, 5, 0.1)]
        drawn.append(torch.cat([each.flatten().cpu() for each in (*flips, *others)]))
    result["drawn"], result["share of ones"] = len(drawn[0]), float(drawn[0].float().mean())
    result["different"] = int((drawn[0] != drawn[1]).sum())
    if result["different"]:
        raise ParityError(f"{result['different']} of {len(drawn[0])} draws differ")


def _quantizer(section: Section, result: Result, cfg: ModelConfig) -> None:
    """Bits are canonical: equal latents must have equal bits on every device, up to ties."""
    frames = cfg.scheme_for(_FRAMES).blocks[-1].frame + 1
    latents = random_latents((16, frames, cfg.num_bits, *cfg.scales[-1])).transpose(1, 2)
    quantizer = MultiScaleBSQ(cfg.num_bits, cfg.scales)
    device = section.device
    on_cpu, on_device = quantizer.encode(latents), quantizer.encode(latents.to(device))
    _compare_bits(result, on_cpu, on_device, limit=1e-4)
    # From equal bits the latents must be equal to the last bit of the mantissa, or nearly.
    rebuilt = quantizer.decode([bits.to(device) for bits in on_cpu])
    result["rebuilt from equal bits"] = relative_error(rebuilt, quantizer.decode(on_cpu))


def _compare_bits(result: Result, a: list[Tensor], b: list[Tensor], limit: float) -> None:
    shares = [float((x.cpu() != y.cpu()).double().mean()) for x, y in zip(a, b, strict=True)]
    result["share of other bits, by scale"] = shares
    if not max(shares) <= limit:
        raise ParityError(f"{max(shares):.2e} of the bits of a scale differ, above {limit:.0e}")


def _tokenizer(section: Section, result: Result, _: ModelConfig) -> None:
    """Compare the bits of one video; a tie at one scale changes later ones, so 2 % may differ."""
    # TF32 is the default of convolutions: its rounding alone would change bits.
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    net = VideoTokenizer(section.workload.tokenizer).eval()
    height, width = net.cfg.size_px
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, 5, height // 8, width // 8, generator=generator) * 2 - 1
    video = torch.nn.functional.interpolate(video, (5, height, width), mode="trilinear")
    with torch.no_grad():
        on_cpu = net.encode(video)
        on_device = net.to(section.device).encode(video.to(section.device))
        result["latents"] = relative_error(on_device, on_cpu)
        # Latents of an untrained network are small, and their bits near ties.
        norm = 4 / on_cpu.norm(dim=1).mean()
        bits = [net.quantizer.encode(each.to(on_cpu) * norm) for each in (on_cpu, on_device)]
    torch.backends.cudnn.allow_tf32 = True
    _compare_bits(result, bits[0], bits[1], limit=2e-2)


def _sampling(section: Section, result: Result, cfg: ModelConfig) -> None:
    """Compare greedy clips with and without a cache, in fp32."""
    model = build(cfg, section.device).eval()
    frames = 1 + cfg.time_stride
    settings = [SamplerSettings("ucf", greedy=True, cached=cached) for cached in (True, False)]
    runs = [sample_bits(model, captions(2), frames, [0, 1], settings=each) for each in settings]
    _compare_bits(result, runs[0].bits, runs[1].bits, limit=1e-3)
