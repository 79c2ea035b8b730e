"""Jumps of the loss: detected, rolled back, and recorded.

A spike is a loss far above the median of the last ones. The training goes back to the checkpoint
before it and skips the batches that were trained since then: with the same weights, other batches
mostly do not spike.

    step     400 (checkpoint) ... 437 (spike)
    then     400, batch 438 of the data ...     recorded: step 400 skipped 38 batches

Source: PaLM, arXiv 2204.02311 section 5.1.
"""

from statistics import median

from videoar.training.config import SpikeConfig


class LossSpikeError(Exception):
    """Raised on all ranks at the same step; the caller rolls the training back."""

    def __init__(self, step: int, loss: float, usual: float) -> None:
        super().__init__(f"training step {step}: loss {loss:.4f}, usually {usual:.4f}")
        self.step = step


class SpikeDetector:
    """Compares each loss with the median of those before it."""

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self.recent: list[float] = []
        """Losses of the last `window` steps, in order; part of a checkpoint."""

    def check(self, step: int, loss: float) -> None:
        """Add the finite loss of a step.

        Raises:
            LossSpikeError: it is a spike.
        """
        window = self.config.window
        if len(self.recent) == window and loss > self.config.factor * median(self.recent):
            raise LossSpikeError(step, loss, median(self.recent))
        self.recent = [*self.recent, loss][-window:]
