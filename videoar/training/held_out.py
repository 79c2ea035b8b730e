"""Held-out numbers of a transformer: nats and accuracy per frame and scale, clean and corrupted.

The clean numbers are of histories without errors. The flipped ones are under the run's own
corruption, the task that is trained; the seeds of the val rows are fixed, so every evaluation flips
the same bits, whatever the step and the world size.

Names of the metrics; `val` is clean, `val_flipped` corrupted:

    val/loss                        weighted nats per bit, as the training loss; ln 2 at chance
    val/bit_accuracy                share of bits whose likelier value is the label
    val/scale2/scale_nats           unweighted nats per bit of a scale, mean over frames
    val/frame1/frame_nats           the same of a frame, mean over scales
    val/frame1/scale2/block_nats    of one block; `block_accuracy` beside it
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from videoar.model.transformer.loss import bit_loss, block_statistics
from videoar.training.collectives import all_reduce_sum
from videoar.training.config import Phase
from videoar.training.objective import Objective, Prediction

_VARIANTS = {"val": False, "val_flipped": True}
"""Name of the metrics, and whether bits are flipped."""


class HeldOutLoader(Protocol):
    """The part of `TokenLoader` that an evaluation uses."""

    def seek(self, position: int) -> None:
        """Go to a batch of epoch 0."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch."""


@torch.no_grad()
def evaluate(
    objective: Objective, loaders: Mapping[str, HeldOutLoader], phase: Phase
) -> dict[str, float]:
    """Measure the current weights on the first val rows of each store.

    All ranks take part, each with its rows; all get the same numbers.

    Args:
        objective: of the model.
        loaders: this rank's loaders of the split `val` by store.
        phase: frames, scale schedules, parts of a batch.
    """
    training, device = objective.training, objective.model.device
    variants = [n for n, flips in _VARIANTS.items() if not (flips and training.corruption.is_clean)]
    sums = {name: _Sums(device) for name in variants}
    for store, loader in sorted(loaders.items()):
        for number, batch in enumerate(_first_batches(loader, training.validation.max_rows)):
            rows = objective.rows(batch, phase.frames_of(store), seed_of=("val", store, number))
            shape = objective.frames_and_scales(rows, phase)
            for name in variants:
                sums[name].expect(shape)
                for part in objective.parts(rows, phase):
                    is_flipped = _VARIANTS[name]
                    predicted = objective.predict(part, phase, is_training=False, flips=is_flipped)
                    sums[name].add(shape, predicted, len(part))
    return {f"{name}/{key}": v for name in variants for key, v in sums[name].means().items()}


def _first_batches(loader: HeldOutLoader, max_rows: int) -> Iterator[dict[str, Any]]:
    """Yield batches of epoch 0 until they hold `max_rows` rows over all ranks, the last one cut."""
    loader.seek(0)
    left = max_rows
    for batch in loader:
        kept = max(0, min(len(batch["captions"]), left - batch["first_row"]))
        yield batch | {
            "latent_BTKHW": batch["latent_BTKHW"][:kept], "captions": batch["captions"][:kept]
        }  # fmt: skip
        left -= batch["global_size"]
        if left <= 0:
            return


class _Sums:
    """Sums over rows by (frames, scales), on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: dict[tuple[int, int], Tensor] = {}
        """By (T, S): nats and accuracy of each block, [2, T, S]."""
        self._losses: dict[tuple[int, int], Tensor] = {}
        """By (T, S): weighted loss, bit accuracy and number of rows, [3]."""

    def expect(self, shape: tuple[int, int]) -> None:
        """Add a shape, also on a rank without rows of it: all ranks exchange the same tensors."""
        if shape not in self._blocks:
            self._blocks[shape] = torch.zeros(2, *shape, device=self._device)
            self._losses[shape] = torch.zeros(3, device=self._device)

    def add(self, shape: tuple[int, int], prediction: Prediction, rows: int) -> None:
        """Add a prediction of some rows; of 0 if they are padding."""
        if not rows:
            return
        logits, bits, layout = prediction.logits_BLK2, prediction.bits_BLK, prediction.layout
        own = bit_loss(logits, bits, layout.weight_l)
        blocks = block_statistics(logits, bits, layout)
        ones = torch.ones_like(own.loss)
        self._losses[shape] += rows * torch.stack([own.loss, own.accuracy, ones])
        self._blocks[shape] += torch.stack([blocks.nats_TS, blocks.accuracy_TS])

    def means(self) -> dict[str, float]:
        """Return the means over the rows of all ranks; empty without a row."""
        blocks, losses = (
            {shape: all_reduce_sum(own[shape]).cpu() for shape in sorted(own)}
            for own in (self._blocks, self._losses)
        )
        if not blocks:
            return {}
        loss, accuracy, rows = torch.stack([*losses.values()]).sum(0).tolist()
        size = [max(sizes) for sizes in zip(*blocks, strict=True)]
        nats_TS, accuracy_TS, rows_TS = torch.zeros(3, *size)
        for (frames, scales), own in blocks.items():
            nats_TS[:frames, :scales] += own[0]
            accuracy_TS[:frames, :scales] += own[1]
            rows_TS[:frames, :scales] += losses[frames, scales][2]
        nats_TS, accuracy_TS = nats_TS / rows_TS, accuracy_TS / rows_TS
        by_name = {"loss": loss / rows, "bit_accuracy": accuracy / rows}
        by_name |= _named("scale{}/scale_nats", nats_TS.nanmean(0))
        by_name |= _named("frame{}/frame_nats", nats_TS.nanmean(1))
        for t in range(size[0]):
            by_name |= _named(f"frame{t}/scale{{}}/block_nats", nats_TS[t])
            by_name |= _named(f"frame{t}/scale{{}}/block_accuracy", accuracy_TS[t])
        return by_name


def _named(name: str, values: Tensor) -> dict[str, float]:
    """Return finite values by their number; no row may have had this frame and scale."""
    pairs = enumerate(values.tolist())
    return {name.format(i): value for i, value in pairs if math.isfinite(value)}
