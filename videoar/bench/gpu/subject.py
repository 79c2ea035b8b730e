"""The network and its trainer as the sections use them: one place for their options."""

from collections.abc import Callable
from typing import Any

import torch

from videoar.bench.gpu.workload import training_batch
from videoar.model.transformer.attention import Attend, Visibility, dense_attention, flex_attention
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.training.config import Phase, TransformerTraining
from videoar.training.transformer import TransformerTrainer

CHECKPOINTING = ("none", "full")
"""Kinds of activation checkpointing."""


def build(cfg: ModelConfig, device: torch.device, seed: int = 0) -> VideoAR:
    """Return a network with seeded random weights, drawn on the device, where that is fast."""
    with torch.device(device):
        torch.manual_seed(seed)
        return VideoAR(cfg)


def set_checkpointing(model: VideoAR, kind: str) -> None:
    """Set which activations are recomputed."""
    model.checkpoint_activations = kind == "full"


def attend_dense(visibility: Visibility) -> Attend:
    """Return attention with an explicit mask."""
    return dense_attention(visibility, 0, len(visibility.block_L))


def attend_fast(visibility: Visibility) -> Attend:
    """Return the attention that a training step uses on the device."""
    if visibility.block_L.device.type == "cuda":
        return flex_attention(visibility)
    return attend_dense(visibility)


class Subject:
    """A network in training, with the real trainer.

    Args:
        cfg: shape of the network.
        num_frames: pixel frames of every clip.
        device: where to train.
        checkpointing: kind of activation checkpointing.
        is_compiled: whether layers are compiled.
        p_mask: probability of hiding a past frame.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        num_frames: int,
        device: torch.device,
        *,
        checkpointing: str = "none",
        is_compiled: bool = False,
    ) -> None:
        self.cfg, self.num_frames = cfg, num_frames
        model = build(cfg, device)
        # chosen: longer than any measurement, so that the rate stays in its warm-up
        self.phase = Phase(steps=100_000, batch_size=1)
        training = TransformerTraining(
            phases=(self.phase,),
            precision="bf16",
            checkpoint_activations=checkpointing == "full",
        )
        self.trainer = TransformerTrainer(model, training, no_loader)
        if is_compiled:
            # On a CPU only a test compiles: capturing graphs is enough, and takes no C++ compiler.
            backend = "inductor" if device.type == "cuda" else "eager"
            for layer in model.layers:
                layer.compile(backend=backend)

    def step(self, batch: int) -> Callable[[], dict[str, float]]:
        """Return a training step on a batch in memory."""
        data = training_batch(self.cfg, self.num_frames, batch)
        return lambda: self.trainer.take_step(data, self.phase, self.trainer.step)


def no_loader(_: int) -> Any:  # noqa: ANN401 - the trainer's loader protocol
    """Stand in for a loader: benchmarks hand their batches to `take_step`."""
    raise AssertionError("a benchmark hands its batches to `take_step`")
