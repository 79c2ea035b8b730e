"""The network and its trainer as the sections use them: one place for their options."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from videoar.bench.gpu.workload import training_batch
from videoar.model.transformer.attention import Layout, Visibility, attend
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.layer import Checkpointing
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.tiles import tile_mask
from videoar.training.config import Phase, TransformerTraining
from videoar.training.transformer import TransformerTrainer

CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full")
"""Kinds of activation checkpointing."""

Attention: TypeAlias = Literal["auto", "dense", "flex"]
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps queries, keys and values [B, N, L, E] to outputs [B, N, L, E]."""


def build(cfg: ModelConfig, device: torch.device, seed: int = 0) -> VideoAR:
    """Return a network with seeded random weights, drawn on the device, where that is fast."""
    with torch.device(device):
        torch.manual_seed(seed)
        return VideoAR(cfg)


def compile_layers(model: VideoAR) -> None:
    """Compile the layers."""
    # On a CPU only a test compiles: capturing graphs is enough, and takes no C++ compiler.
    backend = "inductor" if model.device.type == "cuda" else "eager"
    model.compile_layers(backend)


def attend_dense(_: Layout, visibility: Visibility) -> Attend:
    """Return attention with an explicit mask."""
    return partial(attend, mask=visibility.dense(0, len(visibility.block_L)))


def attend_fast(layout: Layout, visibility: Visibility) -> Attend:
    """Return the attention that a training step uses on the device."""
    if visibility.block_L.device.type == "cuda":
        return partial(attend, mask=tile_mask(layout, visibility))
    return attend_dense(layout, visibility)


@dataclass(frozen=True)
class MemoryLoader:
    """Batches of clips in memory, in a shuffled order of each epoch."""

    latent_BTKHW: Tensor
    captions: Sequence[str]
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield one epoch; the last batch may be smaller."""
        for rows in torch.randperm(len(self.captions)).split(self.batch_size):
            yield {
                "latent_BTKHW": self.latent_BTKHW[rows],
                "captions": [self.captions[i] for i in rows],
                "first_row": 0,
                "global_size": len(rows),
            }

    def seek(self, _: int) -> None:
        """Do nothing: an epoch holds all rows, in whatever order."""

    def state_dict(self) -> dict[str, int | str]:
        """Return nothing: a benchmark is not resumed."""
        return {}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class MemoryData:
    """The data of a training in memory."""

    train_rows: MemoryLoader | None = None
    val_rows: MemoryLoader | None = None

    def train(self, _: Phase) -> MemoryLoader:
        """Return the training rows."""
        if self.train_rows is None:
            raise ValueError("there is no data to train on: hand batches to `take_step`")
        return self.train_rows

    def held_out(self, _: Phase) -> dict[str, MemoryLoader]:
        """Return the validation rows."""
        return {} if self.val_rows is None else {"latents": self.val_rows}


class Subject:
    """A network in training, with the real trainer, on batches in memory.

    Args:
        cfg: shape of the network.
        num_frames: pixel frames of every clip.
        device: where to train.
        checkpointing: kind of activation checkpointing.
        is_compiled: whether layers are compiled.
        attention: kernel of attention, see `VideoAR.attention`.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        num_frames: int,
        device: torch.device,
        *,
        checkpointing: Checkpointing = "none",
        is_compiled: bool = False,
        attention: Attention = "auto",
    ) -> None:
        self.cfg, self.num_frames = cfg, num_frames
        model = build(cfg, device)
        # chosen: longer than any measurement, so that the rate stays in its warm-up
        self.phase = Phase(steps=100_000, batch_size=1)
        training = TransformerTraining(
            phases=(self.phase,),
            precision="bf16",
            activation_checkpointing=checkpointing,
            compile=False,
        )
        self.trainer = TransformerTrainer(model, training, MemoryData())
        model.attention = attention
        if is_compiled:
            compile_layers(model)

    def step(self, batch: int) -> Callable[[], None]:
        """Return a training step on a batch in memory."""
        data = training_batch(self.cfg, self.num_frames, batch)

        def take() -> None:
            self.trainer.take_step(data, self.phase, self.trainer.step)
            self.trainer.progress.step += 1

        return take
