"""The adversary of a tokenizer in training: what it scores, learns and remembers.

B batch, T frames, H W height and width.
Source: arXiv 2601.05966 equation 4.
"""

from torch import Tensor, nn

from videoar.model.tokenizer.discriminator import (
    LeCam,
    PatchDiscriminator,
    hinge_discriminator_loss,
)
from videoar.training.config import OptimizerConfig
from videoar.training.optimizer import make_adamw

SCORES = ("real", "fake")
"""Terms of `Discriminator.terms` that are no metrics: they update the running means."""


class Discriminator(nn.Module):
    """The discriminator, the running means of its scores, and their optimizer.

    The names `judge` and `lecam` are keys of checkpoints (`critic/judge.layers.0.weight`).

    Args:
        config: of the optimizer.
        lecam_weight: weight of the LeCAM penalty.
        device: where to train.
    """

    def __init__(self, config: OptimizerConfig, lecam_weight: float, device: str) -> None:
        super().__init__()
        self.judge = PatchDiscriminator()
        self.lecam = LeCam()
        self.to(device)
        self.optimizer = make_adamw(self.judge, config)
        self._lecam_weight = lecam_weight

    def judge_frozen(self, video_B3THW: Tensor) -> Tensor:
        """Return scores with a gradient to the video alone, not to the discriminator's weights."""
        self.judge.requires_grad_(requires_grad=False)
        try:
            logits: Tensor = self.judge(video_B3THW)
        finally:
            self.judge.requires_grad_()
        return logits

    def terms(self, video_B3THW: Tensor, rebuilt_B3THW: Tensor) -> dict[str, Tensor]:
        """Return the loss, as `critic`, and the mean scores.

        `critic` is the metric's name in stored histories and in MLflow.
        """
        real, fake = self.judge(video_B3THW), self.judge(rebuilt_B3THW)
        loss = hinge_discriminator_loss(real, fake) + self._lecam_weight * self.lecam(real, fake)
        return {"critic": loss, **dict(zip(SCORES, (real.mean(), fake.mean()), strict=True))}

    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Change the weights by their gradients, and the running means by a batch's scores."""
        self.optimizer.step()
        self.lecam.update(real_mean, fake_mean)
