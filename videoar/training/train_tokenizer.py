"""Train a tokenizer: reconstruct short excerpts of clips through the quantizer.

The one idea: the network is causal and convolutional, so excerpts of a few frames train what runs
on clips of any length, and cost less. Every step draws its clips from a generator seeded by the
step alone: a run that was killed goes on as it would have, and any number of ranks sees the same
batches.

Shape suffixes: B batch (of this rank), T frames, H W height and width, C channels.
Source: arXiv 2601.05966 section 4.1, equation 4; constants of `TokenizerTraining`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from videoar.core.errors import ConfigError, StageError
from videoar.core.ids import seed_from
from videoar.model.discriminator import (
    LeCam,
    PatchDiscriminator,
    hinge_critic_loss,
    hinge_generator_loss,
)
from videoar.model.tokenizer import VideoTokenizer, video_from_frames
from videoar.model.tokenizer_config import TokenizerConfig, TokenizerTraining
from videoar.model.tokenizer_losses import (
    FeatureNet,
    RandomFeatures,
    perceptual_loss,
    pixel_loss,
    psnr,
)
from videoar.training.checkpoint import load_state, save_state
from videoar.training.config import OptimizerConfig
from videoar.training.optimizer import MovingAverage, make_adamw, set_rate

Metrics = dict[str, float]
_HISTORY_POINTS = 100


class Clips(Protocol):
    """Clips by number, decoded early or when asked for: frames_THWC, uint8 RGB."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Return one clip."""
        ...


class TokenizerTrainer:
    """One rank of a training run.

    Args:
        cfg: shape of the network.
        options: how to train it.
        clips: what to train on, in the same order on every rank.
        rank: this rank's number; ranks share the work of every batch.
        world_size: number of ranks; divides `options.batch_clips`.
        features: feature net of the perceptual term; a frozen random one by default.

    Raises:
        ConfigError: the batch cannot be shared evenly, or there are no clips.
    """

    def __init__(
        self,
        cfg: TokenizerConfig,
        options: TokenizerTraining,
        clips: Clips,
        rank: int = 0,
        world_size: int = 1,
        *,
        features: FeatureNet | None = None,
    ) -> None:
        if options.batch_clips % world_size:
            raise ConfigError("batch_clips", f"is no multiple of {world_size} ranks")
        if not len(clips):
            raise ConfigError("clips", "there are no clips to train on")
        cfg.num_latent_frames(options.excerpt_frames)
        self.options, self.clips = options, clips
        self.rank, self.world_size = rank, world_size
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._optimizer_config = OptimizerConfig(
            learning_rate=options.learning_rate, weight_decay=0.0, ema=options.ema
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.net = VideoTokenizer(cfg)
            self.critic = _Critic(self._optimizer_config) if options.weights.gan else None
        self.features = features or RandomFeatures(options.seed)
        self.optimizer = make_adamw(self.net.parameters(), self._optimizer_config)
        self.average = MovingAverage(self.net, options.ema)

    def train_step(self) -> Metrics:
        """Take one step; return its losses, PSNR in dB and the mean norm of the latents.

        Raises:
            StageError: the loss is not finite.
        """
        self._set_rates()
        video_B3THW = self._batch()
        latent = self.net.encode(video_B3THW)
        quantized = self.net.quantizer(latent)
        rebuilt_B3THW = self.net.decode(quantized.latent_BKTHW)
        critic = self.critic if self.step >= self.options.weights.gan_start else None
        terms = {
            "quantizer": self.options.weights.quantizer * quantized.loss,
            **self._terms(video_B3THW, rebuilt_B3THW, critic),
        }
        loss = torch.stack(list(terms.values())).sum()
        if not math.isfinite(loss.item()):
            raise StageError("train_tokenizer", f"the loss of step {self.step} is {loss.item()}")
        self._descend(self.optimizer, loss)
        self.average.update(self.net, self.step)
        if critic is not None:
            terms["critic"] = self._train_critic(critic, video_B3THW, rebuilt_B3THW.detach())
        metrics = {
            "loss": loss.item(),
            **{name: term.item() for name, term in terms.items()},
            "psnr_db": psnr(video_B3THW, rebuilt_B3THW.detach()).item(),
            "latent_norm": latent.detach().norm(dim=1).mean().item(),
        }
        self._remember(metrics)
        return metrics

    def averaged(self) -> VideoTokenizer:
        """Return the network with averaged weights, in evaluation mode: what is published."""
        net = VideoTokenizer(self.net.cfg)
        net.load_state_dict(self.average.weights)
        return net.eval()

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on into an existing folder."""
        save_state(folder, self._parts(), {"step": self.step, "history": self.history})

    def load(self, folder: Path) -> None:
        """Go on where `save` was called."""
        progress = load_state(folder, self._parts())
        self.step, self.history = progress["step"], progress["history"]

    def _parts(self) -> dict[str, Any]:
        parts = {"net": self.net, "adam": self.optimizer, "average": self.average.weights}
        if self.critic is not None:
            parts |= {"critic": self.critic, "critic_adam": self.critic.optimizer}
        return parts

    def _batch(self) -> Tensor:
        """Draw this rank's clips of the step, and where their excerpts begin."""
        options = self.options
        num_frames = 1 if self.step < options.image_steps else options.excerpt_frames
        count = options.batch_clips * (options.excerpt_frames // num_frames)
        draw = np.random.default_rng(seed_from("tokenizer", options.seed, self.step))
        chosen, places = draw.integers(len(self.clips), size=count), draw.random(count)
        mine = slice(self.rank, None, self.world_size)
        excerpts = [
            _excerpt(self.clips[int(index)], num_frames, place)
            for index, place in zip(chosen[mine], places[mine], strict=True)
        ]
        return video_from_frames(torch.from_numpy(np.stack(excerpts)))

    def _terms(
        self, video_B3THW: Tensor, rebuilt_B3THW: Tensor, critic: "_Critic | None"
    ) -> dict[str, Tensor]:
        weights = self.options.weights
        terms = {"pixel": pixel_loss(video_B3THW, rebuilt_B3THW, weights)}
        if weights.perceptual:
            distance = perceptual_loss(self.features, video_B3THW, rebuilt_B3THW)
            terms["perceptual"] = weights.perceptual * distance
        if critic is not None:
            logits = critic.judge(rebuilt_B3THW)
            terms["gan"] = weights.gan * hinge_generator_loss(logits)
        return terms

    def _train_critic(
        self, critic: "_Critic", video_B3THW: Tensor, rebuilt_B3THW: Tensor
    ) -> Tensor:
        real, fake = critic.judge(video_B3THW), critic.judge(rebuilt_B3THW)
        loss = hinge_critic_loss(real, fake)
        loss = loss + self.options.weights.lecam * critic.lecam(real, fake)
        self._descend(critic.optimizer, loss)
        return loss.detach()

    def _set_rates(self) -> None:
        rate = self._optimizer_config.rate(self.step, self.options.steps)
        set_rate(self.optimizer, rate)
        if self.critic is not None:
            set_rate(self.critic.optimizer, rate)

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()  # also what the other network's loss has left in these weights
        loss.backward()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        _average_gradients(weights, self.world_size)
        torch.nn.utils.clip_grad_norm_(weights, self._optimizer_config.clip_norm)
        optimizer.step()

    def _remember(self, metrics: Metrics) -> None:
        every = max(1, self.options.steps // _HISTORY_POINTS)
        if self.step % every == 0 or self.step == self.options.steps - 1:
            self.history.append({"step": self.step, **metrics})
        self.step += 1


class _Critic(nn.Module):
    """The discriminator with what belongs to it."""

    def __init__(self, config: OptimizerConfig) -> None:
        super().__init__()
        self.judge = PatchDiscriminator()
        self.lecam = LeCam()
        self.optimizer = make_adamw(self.judge.parameters(), config)


@torch.no_grad()
def reconstruction_psnr(net: VideoTokenizer, clips: Iterable[np.ndarray]) -> float:
    """Return the mean PSNR in dB of clips that went through bits."""
    values = []
    for frames_THWC in clips:
        video_B3THW = video_from_frames(torch.from_numpy(frames_THWC)[None])
        values.append(psnr(video_B3THW, net.detokenize(net.tokenize(video_B3THW))).item())
    return float(np.mean(values))


def _excerpt(frames_THWC: np.ndarray, num_frames: int, place: float) -> np.ndarray:
    """Cut an excerpt; `place` in [0, 1) says how far from the beginning.

    Raises:
        ConfigError: the clip is too short.
    """
    spare = len(frames_THWC) - num_frames
    if spare < 0:
        what = f"{num_frames} frames are longer than a clip of {len(frames_THWC)}"
        raise ConfigError("excerpt_frames", what)
    start = int(place * (spare + 1))
    return frames_THWC[start : start + num_frames]


def _average_gradients(weights: Sequence[nn.Parameter], world_size: int) -> None:
    """Replace gradients by their mean over the ranks, in one exchange."""
    if world_size == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, _split_like(flat / world_size, gradients), strict=True):
        gradient.copy_(mean)


def _split_like(flat: Tensor, shapes: Sequence[Tensor]) -> Iterator[Tensor]:
    for part, like in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True):
        yield part.view_as(like)
