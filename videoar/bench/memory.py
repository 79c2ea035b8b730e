"""Memory of a training by arithmetic for every preset, and measured for those that fit here.

    python -m videoar.bench.memory --measure tiny small

Bytes that a rank holds in a step of `pretrain` with precision bf16:

    state         20 per parameter: fp32 weights, gradients, two moments of AdamW, moving average
    copies        2 per parameter: weights in bf16, which autocast keeps from forward to backward
    activations   per token and layer, with C width, F ff_width, N heads:
                  none       50 C + 8 F + 12 N + 8
                  selective  16 C + 4 F + 4 N, and one layer of `none` in the backward pass
                  full       4 C, and one layer of `none`
    sharded       state / ranks (`training.shard`), and what is gathered: 6 per parameter of a layer
                  (bf16 weights of two layers, the current and the next one, and bf16 gradients of
                  one), 8 per parameter outside of the layers (fp32 weights and gradients)
    logits        fp32 logits and their gradient, 16 per token and bit

The activations are those of the eager layers on a CPU, to the byte (a test compares them). Compiled
layers keep less, and so does the fused RMSNorm of CUDA. Left out are text, embeddings, masks of
attention and buffers of libraries, all of which a measurement has in it.
"""

import argparse
import json
import time
from dataclasses import dataclass
from statistics import median

import torch

from videoar.bench.gpu.subject import CHECKPOINTING, Subject
from videoar.bench.result import measure_in_child, peak_bytes
from videoar.core.hardware import hardware
from videoar.model.schedule import latent_frames, tokens_per_frame
from videoar.model.transformer.config import PRESETS, ModelConfig
from videoar.model.transformer.layer import Checkpointing
from videoar.model.transformer.network import VideoAR

_GIB = 1 << 30
_STATE, _COPIES = 20, 2
_GATHERED, _GATHERED_REST = 6, 8
_LOGITS = 16
_FRAMES = {"4B": (17, 33, 65)}
"""Pixel frames of the rows of the table; other presets have 17."""
_RANKS = (8, 64)
_STEPS = 4
"""The first one is not counted: it allocates."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights."""

    total: int
    """All that are trained, without a frozen text encoder."""
    layer: int
    """Of one layer."""


def parameters(cfg: ModelConfig) -> Parameters:
    """Count the weights of a network on the `meta` device, which allocates none."""
    with torch.device("meta"):
        model = VideoAR(cfg)
    layer = sum(weight.numel() for weight in model.layers[0].parameters())
    return Parameters(sum(weight.numel() for weight in model.parameters()), layer)


def num_tokens(cfg: ModelConfig, num_frames: int) -> int:
    """Return the visual tokens of a clip."""
    return latent_frames(num_frames, cfg.time_stride) * tokens_per_frame(cfg.scales)


def layer_bytes(cfg: ModelConfig, kind: Checkpointing) -> int:
    """Return the activations that one layer keeps per token for the backward pass."""
    width, hidden, heads = cfg.width, cfg.ff_width, cfg.heads
    return {
        "none": 50 * width + 8 * hidden + 12 * heads + 8,
        "selective": 16 * width + 4 * hidden + 4 * heads,
        "full": 4 * width,
    }[kind]


def activation_bytes(cfg: ModelConfig, tokens: int, kind: Checkpointing) -> int:
    """Return the largest sum of activations and logits in a step of so many tokens."""
    kept = cfg.depth * layer_bytes(cfg, kind)
    recomputed = 0 if kind == "none" else layer_bytes(cfg, "none")
    return tokens * (kept + recomputed + _LOGITS * cfg.num_bits)


def state_bytes(cfg: ModelConfig, ranks: int = 1) -> int:
    """Return the bytes of weights, gradients, moments and average that a rank holds."""
    count = parameters(cfg)
    if ranks == 1:
        return (_STATE + _COPIES) * count.total
    rest = count.total - cfg.depth * count.layer
    return _STATE * count.total // ranks + _GATHERED * count.layer + _GATHERED_REST * rest


def measure(preset: str, batch: int) -> dict[str, float]:
    """Take steps of the real trainer in this process, on one thread.

    Returns:
        Peak memory after the imports and after the steps, and CPU seconds per step, which depend
        less on what else runs on the machine than the time on the clock.
    """
    torch.set_num_threads(1)
    before = peak_bytes()
    subject = Subject(PRESETS[preset], 17, torch.device("cpu"))
    step, seconds = subject.step(batch), []
    for _ in range(_STEPS):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return {"imports": before, "peak": peak_bytes(), "seconds": median(seconds[1:])}


def state_table() -> list[str]:
    """Return the table of the state of one rank: Markdown lines."""
    lines = _head("preset", "parameters", "weights", "gradients", "moments", "average",
                  "bf16 copies", "state and copies")  # fmt: skip
    for name, cfg in PRESETS.items():
        count = parameters(cfg).total
        parts = [_gib(size * count) for size in (4, 4, 8, 4, _COPIES, _STATE + _COPIES)]
        lines.append(_row(name, f"{count / 1e6:,.1f} M", *parts))
    return lines


def activation_table() -> list[str]:
    """Return the table of activations of one clip: Markdown lines."""
    lines = _head("preset", "frames", "tokens", *(f"per token, {kind}" for kind in CHECKPOINTING),
                  *(f"clip, {kind}" for kind in CHECKPOINTING))  # fmt: skip
    for name, cfg in PRESETS.items():
        for frames in _FRAMES.get(name, (17,)):
            tokens = num_tokens(cfg, frames)
            per_token = [f"{cfg.depth * layer_bytes(cfg, k) / 1024:,.0f}" for k in CHECKPOINTING]
            clip = [_gib(activation_bytes(cfg, tokens, kind)) for kind in CHECKPOINTING]
            lines.append(_row(name, frames, f"{tokens:,}", *per_token, *clip))
    return lines


def sharded_table(preset: str = "4B") -> list[str]:
    """Return the table of one rank of a sharded training, one clip at a time: Markdown lines."""
    cfg = PRESETS[preset]
    lines = _head("GPUs", "state and gathered layers", "frames",
                  *(f"in all, {kind}" for kind in CHECKPOINTING))  # fmt: skip
    for ranks in _RANKS:
        state = state_bytes(cfg, ranks)
        for frames in _FRAMES[preset]:
            tokens = num_tokens(cfg, frames)
            sums = (state + activation_bytes(cfg, tokens, kind) for kind in CHECKPOINTING)
            lines.append(_row(ranks, _gib(state), frames, *map(_gib, sums)))
    return lines


def measured_table(presets: list[str], batch: int) -> list[str]:
    """Measure presets in a process each; return the table: Markdown lines."""
    lines = _head("preset", "clips", "peak, measured", "of it imports, measured", "rest, measured",
                  "rest, computed", "CPU seconds per step, measured")  # fmt: skip
    for preset in presets:
        call = ("-m", __spec__.name, "--child", preset, "--batch", batch)
        found = measure_in_child(preset, *call)
        cfg = PRESETS[preset]
        computed = activation_bytes(cfg, batch * num_tokens(cfg, 17), "none") + state_bytes(cfg)
        sizes = (found["peak"], found["imports"], found["peak"] - found["imports"], computed)
        lines.append(_row(preset, batch, *map(_gib, sizes), f"{found['seconds']:.2f}"))
    return lines


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _gib(size: float) -> str:
    return f"{size / _GIB:.3g}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs="*", choices=list(PRESETS), default=[])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--child", choices=list(PRESETS))
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.batch)))
        return
    titles = {
        "State of one rank, GiB, computed": state_table(),
        "Activations of one clip, computed (KiB per token, GiB per clip)": activation_table(),
        "4B under FSDP2, GiB per GPU, computed": sharded_table(),
    }
    if options.measure:
        name = f"Training steps on {hardware()}, GiB"
        titles[name] = measured_table(options.measure, options.batch)
    print("\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in titles.items()))


if __name__ == "__main__":
    main()
