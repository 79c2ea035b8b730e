"""What is measured: shapes of the paper on a GPU, toy shapes on a CPU; latents and captions.

B batch, T latent frames, K bits, H W latent grid.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from videoar.core.errors import ConfigError
from videoar.model.schedule import latent_frames, scale_schedule
from videoar.model.tokenizer.config import TOKENIZERS, TokenizerConfig
from videoar.model.transformer.config import PRESETS, ModelConfig
from videoar.model.transformer.layer import Checkpointing

# Captions of the length of UCF-101's class names in the paper's template (figure 2).
_ACTIONS = (
    "diving", "a man applying eyeliner", "a man playing the piano", "horse riding in a race",
    "two people fencing", "a basketball player dunking", "surfing a large wave",
    "a person shooting an arrow at an archery range", "a child skateboarding",
    "a group of people marching in a military parade",
)  # fmt: skip
_PARITY = ModelConfig(depth=4, width=512, heads=8, ff_width=2048, num_bits=48)


@dataclass(frozen=True)
class Workload:
    """Shapes of one run."""

    headline: str = "L"
    """Preset whose training and sampling is measured."""
    presets: dict[str, ModelConfig] = field(default_factory=lambda: PRESETS)
    num_frames: int = 17
    """Pixel frames of the small shape; UCF's are 5 latent frames of 8 x 8."""
    steps: tuple[tuple[str, Checkpointing, int], ...] = (
        ("eager", "none", 16),
        ("compiled", "none", 32),
        ("compiled", "none", 64),
        ("compiled, FlexAttention", "none", 32),
        ("compiled", "selective", 64),
        ("compiled", "full", 64),
        ("eager", "full", 64),
        ("eager", "selective", 32),
        ("eager", "none", 32),
    )
    """Training steps in order of value: how layers run, checkpointing, batch."""
    sampled: tuple[int, ...] = (1, 8, 32, 64)
    """Batches of clips that are sampled."""
    long_scales: tuple[tuple[int, int], ...] = PRESETS["4B"].scales
    long_frames: int = 33
    """Pixel frames of the large shape, 24 x 42 x 9 latents."""
    parity: ModelConfig = _PARITY
    """Network whose numbers are compared between devices."""
    learner: str = "small"
    """Presets of transformer and tokenizer that are trained at the end."""
    tokenizer: TokenizerConfig = TOKENIZERS["ucf"]
    tokenizer_sizes_px: tuple[int, ...] = (128, 256)
    tokenizer_batch: int = 8
    i3d_batch: int = 16
    i3d_frames: int = 16
    learning_most_s: float = 600.0
    latents: Path | None = None
    clips: Path | None = None
    """Files to train on."""


FULL = Workload()
TOY = Workload(
    headline="tiny",
    presets={"tiny": PRESETS["tiny"]},
    num_frames=5,
    steps=(("eager", "none", 2), ("compiled", "none", 2), ("compiled", "full", 2)),
    sampled=(1, 2),
    long_scales=scale_schedule(4, 7),
    long_frames=9,
    parity=PRESETS["tiny"],
    learner="tiny",
    tokenizer=TOKENIZERS["tiny"],
    tokenizer_sizes_px=(32, 64),
    tokenizer_batch=2,
    i3d_batch=1,
    i3d_frames=9,
    learning_most_s=3.0,
)


def captions(batch: int) -> list[str]:
    """Return captions of 5 to 13 words."""
    return [f"Generate a video of {_ACTIONS[i % len(_ACTIONS)]}" for i in range(batch)]


def random_latents(shape_BTKHW: tuple[int, int, int, int, int], seed: int = 0) -> Tensor:
    """Return smooth random latents, fp16: a few patterns whose amplitudes drift over time.

    Their norm over K is about 4, as that of trained tokenizers: quantizers overshoot below 3.
    """
    batch, frames, bits, height, width = shape_BTKHW
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(16, bits, -(-height // 2), -(-width // 2), generator=generator)
    patterns = torch.nn.functional.interpolate(patterns, (height, width), mode="bilinear")
    drift = torch.randn(batch, frames, 16, generator=generator).cumsum(1)
    latents = torch.einsum("btr,rkhw->btkhw", drift, patterns)
    noise = 0.1 * torch.randn(latents.shape, generator=generator)
    latents = latents / latents.norm(dim=2, keepdim=True).mean().clamp_min(1e-6) + noise
    return torch.as_tensor(4 * latents).half()


def training_batch(cfg: ModelConfig, num_frames: int, batch: int, seed: int = 0) -> dict[str, Any]:
    """Return a batch as the token loader gives it: latents in pinned memory if there is a GPU."""
    frames = latent_frames(num_frames, cfg.time_stride)
    latents = random_latents((batch, frames, cfg.num_bits, *cfg.scales[-1]), seed)
    if torch.cuda.is_available():
        latents = latents.pin_memory()
    return {
        "latent_BTKHW": latents,
        "captions": captions(batch),
        "first_row": 0,
        "global_size": batch,
    }


@dataclass(frozen=True)
class ClipFile:
    """Clips with captions, in two splits."""

    values: Tensor
    """Latents [B, T, K, H, W], or frames [B, T, H, W, C] of uint8 RGB."""
    captions: Sequence[str]
    is_val: Tensor
    """bool per clip."""
    source: str

    @classmethod
    def read(cls, path: Path, name: str) -> "ClipFile":
        """Read a safetensors file.

        It has the tensor `latent` or `frames`, and in its metadata `captions` and `split` (`train`
        or `val` per clip), each a JSON list.

        Raises:
            ConfigError: it does not exist, or has another form.
        """
        if not path.is_file():
            raise ConfigError(str(path), "no such file")
        with safe_open(path, framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118 - the file is no mapping
                raise ConfigError(str(path), f"has no tensor {name!r}")
            values, metadata = file.get_tensor(name), file.metadata() or {}
        texts, splits = (json.loads(metadata.get(key, "[]")) for key in ("captions", "split"))
        if values.ndim != 5 or not len(values) == len(texts) == len(splits):
            what = f"{name} {tuple(values.shape)}, {len(texts)} captions, {len(splits)} splits"
            raise ConfigError(str(path), what, "see ClipFile.read")
        return cls(values, texts, torch.tensor([split == "val" for split in splits]), path.name)

    @classmethod
    def random(cls, cfg: ModelConfig, num_frames: int, clips: int) -> "ClipFile":
        """Return random latents; every fourth clip is for validation."""
        frames = latent_frames(num_frames, cfg.time_stride)
        latents = random_latents((clips, frames, cfg.num_bits, *cfg.scales[-1]), seed=1)
        is_val = torch.arange(clips) % 4 == 3
        return cls(latents, captions(clips), is_val, "random: 16 patterns of drifting amplitude")
