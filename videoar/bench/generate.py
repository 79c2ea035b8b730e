"""`bench generate`: a clip by the cached sampler, without a cache, and token by token.

    uncached        every pass computes all tokens so far: the slow reference
    token by token  the same network over one scale in raster order, each token a pass of its own,
                    with a cache in the simplest loop: the usual autoregressive model

Each run is a process of its own on one thread; its time is CPU time, without loading. Batch 1,
guidance 1, without the decoder to pixels. An uncached run is stopped when it has taken `_LIMIT`
times as long as the cached one: its figure then is the time so far, which is less than that of the
whole clip. Weights are random; speed does not depend on them.

The case `stage` is the stage `generate` on Ray against the sampler alone, see `generate_stage`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from videoar.bench.generate_stage import measure_stage
from videoar.bench.result import BenchResult, compare, measure_in_child, peak_bytes, shuffled
from videoar.model.schedule import SMALL_SQUARE, Scales, latent_frames, scale_schedule
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.rope import rotation
from videoar.model.transformer.sampling import SamplerSettings, sample_bits

_PRESET = "tiny"
_SHAPES: dict[str, tuple[Scales, int]] = {
    "24x42x9": (scale_schedule(24, 42), 33),
    "8x8x5": (SMALL_SQUARE, 17),
}
"""Schedule and pixel frames by name; the first is the headline."""
_PROMPT = ["a red circle moves to the left"]
_LIMIT = 10
_UNCACHED, _TOKENS = "uncached", "token by token"


def run(
    rounds: int, shapes: Sequence[str] = tuple(_SHAPES), *, with_stage: bool = True
) -> BenchResult:
    """Measure in turns; the stage, which needs Ray, only if asked to."""
    headline: dict[str, list[float]] = {}
    cases: dict[str, dict[str, float]] = {}
    for shape in shapes:
        turns = [_turn(shape, turn) for turn in range(rounds)]
        figures = {name: [1 / turn[name]["seconds"] for turn in turns] for name in turns[0]}
        headline = headline or figures
        ratios = compare("generate", "", figures).ratios
        for name, found in turns[-1].items():
            cases[f"{shape}, {name}"] = {
                **found,
                "cached_is_faster": ratios.get(name, 1.0),
                "seconds": round(1 / sorted(figures[name])[rounds // 2], 3),
            }
    unit = f"clips of {shapes[0]} latents per CPU second, transformer `{_PRESET}`"
    if with_stage:
        cases |= measure_stage(rounds)
    return compare("generate", unit, headline, cases=cases)


def _turn(shape: str, turn: int) -> dict[str, dict[str, float]]:
    """Run every contestant once, the cached one first: it sets the limit of the others."""
    found = {"ours": _child("ours", shape, 0)}
    for name in shuffled([_UNCACHED, _TOKENS], turn):
        found[name] = _child(name, shape, _LIMIT * found["ours"]["seconds"])
    return found


def _child(contestant: str, shape: str, limit_s: float) -> dict[str, float]:
    result: dict[str, float] = measure_in_child(
        contestant, "-m", __name__, contestant, shape, limit_s
    )
    return result


class _LateError(Exception):
    """The limit has passed."""


class _Clock:
    """Counts passes; raises after a number of CPU seconds, 0 is no limit."""

    def __init__(self, limit_s: float) -> None:
        self.passes, self.limit_s, self.start = 0, limit_s, time.process_time()

    @property
    def seconds(self) -> float:
        return time.process_time() - self.start

    def __call__(self, *_: object) -> None:
        if self.limit_s and self.seconds > self.limit_s:
            raise _LateError
        self.passes += 1


def measure(contestant: str, shape: str, limit_s: float) -> dict[str, float]:
    """Generate one clip in this process; return passes, CPU seconds and memory above loading."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scales, num_frames = _SHAPES[shape]
    model = VideoAR(PRESETS[_PRESET].model_copy(update={"scales": scales})).eval()
    generate = _token_by_token if contestant == _TOKENS else _by_scale(contestant == "ours")
    generate(model, 1, _Clock(0))  # memory and time of a first pass are those of torch
    before, clock, is_whole = peak_bytes(), _Clock(limit_s), True
    try:
        generate(model, num_frames, clock)
    except _LateError:
        is_whole = False
    return {
        "steps": clock.passes, "seconds": round(clock.seconds, 3),
        "peak_mb": round((peak_bytes() - before) / 2**20, 1), "is_whole": float(is_whole),
    }  # fmt: skip


def _by_scale(cached: bool) -> Callable[[VideoAR, int, _Clock], None]:
    settings = SamplerSettings(guidance=1.0, cached=cached)

    def generate(model: VideoAR, num_frames: int, clock: _Clock) -> None:
        hook = model.register_forward_pre_hook(clock)
        sample_bits(model, _PROMPT, num_frames, [0], settings=settings)
        hook.remove()

    return generate


@torch.no_grad()
def _token_by_token(model: VideoAR, num_frames: int, clock: _Clock) -> None:
    """Decode latents in raster order; the input of a token is the code of the one before."""
    cfg, text = model.cfg, model.encode_text(_PROMPT)
    height, width = cfg.scales[-1]
    frames, prefix = latent_frames(num_frames, cfg.time_stride), text.mask_BP.shape[1]
    grid = [torch.arange(size) for size in (frames, height, width)]
    places = torch.cat([
        torch.arange(prefix)[:, None].expand(-1, 3),
        torch.cartesian_prod(*grid) + prefix,
    ])
    angles = rotation(places[None], cfg.head_width, cfg.rope_base)
    shape = (cfg.depth, 2, 1, cfg.heads, len(places), cfg.head_width)
    storage, length = torch.empty(shape), 0
    x = torch.cat(
        [model.text_mlp(model.text_norm(text.features_BPD)), model.start.expand(1, 1, -1)], dim=1
    )
    mask: Tensor | None = torch.ones(prefix + 1, prefix + 1, dtype=torch.bool).tril()
    for _ in range(frames * height * width):
        clock()
        stop = length + x.shape[1]
        for layer, past in zip(model.layers, storage, strict=True):
            x = layer(x, angles[..., length:stop, :], mask, (past, length))
        log_odds = model.head(model.norm(x[:, -1:])).unflatten(-1, (-1, 2)).diff(dim=-1)[..., 0]
        bits = torch.rand(log_odds.shape) < torch.sigmoid(log_odds)
        x = model.features((bits.float() * 2 - 1) / cfg.num_bits**0.5) + model.scales.weight[0]
        length, mask = stop, None


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
