"""Train a tokenizer: reconstruct short excerpts of clips through the quantizer.

The one idea: the network is causal and convolutional, so what is trained on excerpts of a few
frames runs on clips of any length and size, and costs less to train. The batch of a step depends on
the step alone (`excerpt_loader`): a run resumes deterministically, and the batches are the same
at any number of ranks. All sizes of clips share all weights; each size has scales of its own.

Shape suffixes: B batch (of this rank), T frames, H W height and width, C channels; S scales,
K bits.
Source: arXiv 2601.05966 section 4.1, equation 4; constants of `TokenizerTraining`.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from videoar.core.errors import ConfigError, StageError
from videoar.model.tokenizer.config import TokenizerConfig, TokenizerTraining
from videoar.model.tokenizer.discriminator import hinge_generator_loss
from videoar.model.tokenizer.losses import (
    FeatureNet,
    RandomFeatures,
    perceptual_loss,
    pixel_loss,
    psnr,
)
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames
from videoar.training.checkpoint import Part, restoring, save_state
from videoar.training.collectives import (
    all_gather,
    all_reduce_gradients,
    all_reduce_sum,
    require_same_step,
    world_size,
)
from videoar.training.config import OptimizerConfig
from videoar.training.data.excerpt_loader import Clips, ExcerptLoader
from videoar.training.discriminator import SCORES, Discriminator
from videoar.training.optimizer import MovingAverage, NonFiniteGuard, finite, make_adamw, set_rate

Metrics = dict[str, float]
_HISTORY_POINTS = 100  # chosen: enough for a curve, small in a checkpoint


class _VideoPart(NamedTuple):
    """Some items of a rank's share of the batch, all of one length: one forward pass."""

    video_B3THW: Tensor
    weight: float
    """Share of the global batch: the weights of all parts of all ranks add up to 1."""


class TokenizerTrainer:
    """One rank of a training run.

    Args:
        cfg: shape of the network.
        options: how to train it.
        clips: what to train on, in the same order on every rank.
        rank: this rank's number; ranks share the work of every batch.
        world_size: number of ranks; divides `options.batch_clips`.
        sizes_px: height and width of each clip; that of `cfg` by default.
        features: feature net of the perceptual term; a frozen random one by default.
        start: changes the new network before training, e.g. inflates an image tokenizer into it.
        device: where to train.

    Raises:
        ConfigError: the batch cannot be shared evenly, there are no clips, or no scale is left.
        ValueError: a size is no multiple of the space stride.
    """

    def __init__(  # noqa: PLR0913 - the last four are keyword-only
        self,
        cfg: TokenizerConfig,
        options: TokenizerTraining,
        clips: Clips,
        rank: int = 0,
        world_size: int = 1,
        *,
        sizes_px: Sequence[tuple[int, int]] | None = None,
        features: FeatureNet | None = None,
        start: Callable[[VideoTokenizer], None] | None = None,
        device: str = "cpu",
    ) -> None:
        if options.batch_clips % (world_size * options.accumulate):
            what = f"is no multiple of {world_size} ranks x {options.accumulate} parts"
            raise ConfigError("batch_clips", what)
        if not len(clips):
            raise ConfigError("clips", "there are no clips to train on")
        sizes_px = sizes_px or [cfg.size_px] * len(clips)
        fewest_scales = min(len(cfg.for_size(*size).scales) for size in set(sizes_px))
        if options.drop_scales >= fewest_scales:
            raise ConfigError("drop_scales", f"leaves none of {fewest_scales} scales")
        cfg.num_latent_frames(options.excerpt_frames)  # raises for a length that does not fit
        self.options, self.device, self.world_size = options, device, world_size
        self.loader = ExcerptLoader(clips, options, sizes_px, rank, world_size)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._guard = NonFiniteGuard()
        self._are_ranks_compared = world_size == 1
        self._optimizer_config = OptimizerConfig(
            learning_rate=options.learning_rate, weight_decay=0.0, ema=options.ema
        )
        # Weights are drawn on the CPU in a forked generator: the same on every device and rank,
        # whatever the process has drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.net = VideoTokenizer(cfg)
            if start is not None:
                start(self.net)
            self.net.to(device)
            is_adversarial = options.weights.gan > 0
            self.discriminator = (
                Discriminator(self._optimizer_config, options.weights.lecam, device)
                if is_adversarial
                else None
            )
        self.features = features or RandomFeatures(options.seed)
        if isinstance(self.features, nn.Module):
            self.features.to(device)
        self.optimizer = make_adamw(self.net, self._optimizer_config)
        self.average = MovingAverage(self.net, options.ema)

    def train_step(self) -> Metrics:
        """Take one step; return its losses, PSNR in dB and the mean norm of the latents.

        All are means over the global batch. A step whose loss or gradient is not finite is skipped:
        it changes neither weights nor running means.

        Raises:
            StageError: on all ranks. They begin with other weights, or several steps in a row were
                not finite.
            TransientStorageError: on all ranks. They begin at other steps.
            WorkerLostError: another rank is lost.
        """
        if not self._are_ranks_compared:
            self._compare_ranks()
        self._set_rates()  # a function of the step, so no scheduler has a state to save
        batch = self.loader.batch(self.step)
        parts = [self._on_device(*part) for part in batch.parts]
        is_late = self.step >= self.options.weights.gan_start
        discriminator = self.discriminator if is_late else None
        terms, rebuilt = self._backward(parts, batch.random, discriminator)
        norms = {"gradient norm of the tokenizer": self._reduce_and_clip(self.optimizer)}
        if discriminator is not None:
            terms |= self._backward_discriminator(discriminator, parts, rebuilt)
            norm = self._reduce_and_clip(discriminator.optimizer)
            norms["gradient norm of the discriminator"] = norm
        terms = _sum_of_ranks(terms)
        scores = [terms.pop(name) for name in SCORES if name in terms]
        metrics = _values(terms | norms)
        checked = {"loss": metrics["loss"]} | {name: metrics.pop(name) for name in norms}
        if self._guard.accept(self.step, checked):
            self.optimizer.step()
            self.average.update(self.net, self.step)
            if discriminator is not None:
                discriminator.update(*scores)
        self._finish_step(metrics)
        return metrics

    def _backward(
        self,
        parts: Sequence[_VideoPart],
        random: np.random.Generator,
        discriminator: Discriminator | None,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Compute the tokenizer's gradients; return this rank's share of its terms, and videos."""
        net = self.net.for_size(*parts[0].video_B3THW.shape[-2:])
        kept = self._kept_scales(random, len(net.cfg.scales))
        encoded, batch_mean_p_SK = self._batch_bit_usage(net, parts, kept)
        terms: dict[str, Tensor] = {}
        rebuilt: list[Tensor] = []
        for part in parts:
            with self._autocast():
                latent = net.encode(part.video_B3THW) if encoded is None else encoded
                quantized = net.quantizer(latent, kept, batch_mean_p_SK)
                rebuilt_B3THW = net.decode(quantized.latent_BKTHW).float()
            own = {
                "quantizer": self.options.weights.quantizer * quantized.loss,
                **self._terms(part.video_B3THW, rebuilt_B3THW, discriminator),
            }
            loss = torch.stack(list(own.values())).sum()
            if not rebuilt:
                # Not before the forward pass: gradients freed earlier return their pages to the
                # system, and on a CPU faulting them in again takes 10 % of the step.
                self.optimizer.zero_grad()
            (part.weight * loss).backward()
            rebuilt.append(rebuilt_B3THW.detach())
            # After the backward pass, whose memory these would otherwise add to.
            own |= {
                "loss": loss,
                "psnr_db": psnr(part.video_B3THW, rebuilt[-1]),
                "latent_norm": latent.float().norm(dim=1).mean(),
            }
            _add(terms, own, part.weight)
        return terms, rebuilt

    def averaged(self) -> VideoTokenizer:
        """Return the network with averaged weights, in evaluation mode: what is published."""
        net = VideoTokenizer(self.net.cfg)
        net.load_state_dict(self.average.weights)
        return net.to(self.device).eval()

    def log_metrics(self, metrics: Metrics) -> None:
        """Add to the history what was measured after the last step."""
        last = self.step - 1
        if not self.history or self.history[-1]["step"] != last:
            self.history.append({"step": last})
        self.history[-1] |= metrics

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on into an existing folder."""
        progress = {"step": self.step, "history": self.history}
        save_state(folder, self._state(), progress | {"bad_steps": self._guard.bad_steps})

    def load(self, folder: Path) -> None:
        """Resume from a folder that `save` wrote."""
        with restoring(folder, self._state()) as progress:
            self.step, self.history = progress["step"], progress["history"]
            self._guard.bad_steps = progress["bad_steps"]

    def _state(self) -> dict[str, Part]:
        """Return what a checkpoint holds; the names are part of its format."""
        state: dict[str, Part] = {
            "net": self.net, "adam": self.optimizer, "average": self.average.weights
        }  # fmt: skip
        if self.discriminator is not None:
            state |= {"critic": self.discriminator, "critic_adam": self.discriminator.optimizer}
        return state

    def _compare_ranks(self) -> None:
        """Reject ranks whose initial states differ: no later step would detect it."""
        if world_size() != self.world_size:
            what = f"{self.world_size} ranks, but the process group has {world_size()}"
            raise ValueError(f"{what} (join one first)")
        nets = (self.net, self.discriminator, self.features)
        states = [net.state_dict() for net in nets if isinstance(net, nn.Module)]
        weights = _digest(w for state in (*states, self.average.weights) for w in state.values())
        require_same_step("train_tokenizer", self.step, self.device)
        own = torch.tensor([int(weights[:15], 16)], device=self.device)  # fits int64
        first, *_ = of_ranks = all_gather(own)
        if others := [rank for rank, other in enumerate(of_ranks) if other != first]:
            what = f"ranks {others} begin with other weights than rank 0"
            hint = "give every rank the same lpips_weights and image_weights"
            raise StageError("train_tokenizer", what, hint)
        self._are_ranks_compared = True

    def _on_device(self, frames_BTHWC: np.ndarray, weight: float) -> _VideoPart:
        return _VideoPart(video_from_frames(torch.from_numpy(frames_BTHWC).to(self.device)), weight)

    def _kept_scales(self, random: np.random.Generator, num_scales: int) -> list[bool] | None:
        """Draw which scales take part in the step: the same on all ranks."""
        num_droppable = self.options.drop_scales
        if not num_droppable:
            return None
        kept = random.random(num_droppable) >= self.options.drop_probability
        return [True] * (num_scales - num_droppable) + kept.tolist()

    def _batch_bit_usage(
        self, net: VideoTokenizer, parts: Sequence[_VideoPart], kept: Sequence[bool] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the mean soft bits [S, K] of the global batch, which the entropy term needs.

        The entropy of a mean is not the mean of entropies, so parts and ranks cannot take the mean
        of their own bits. With one part on one rank that is the global mean; None is returned.

        Returns:
            The latents of the only part of a rank (with gradients, so that nothing is encoded
            twice), else None; and the mean soft bits.
        """
        if len(parts) == self.world_size == 1:
            return None, None
        is_only = len(parts) == 1
        mean_p_SK, latent = torch.zeros((), device=self.device), None
        for part in parts:
            with torch.set_grad_enabled(is_only), self._autocast():
                latent = net.encode(part.video_B3THW)
            with torch.no_grad():
                own_mean_p_SK = net.quantizer(latent, kept).mean_p_SK
            mean_p_SK = mean_p_SK + part.weight * own_mean_p_SK
        return latent if is_only else None, all_reduce_sum(mean_p_SK)

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.options.precision == "bf16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=enabled)

    def _terms(
        self, video_B3THW: Tensor, rebuilt_B3THW: Tensor, discriminator: Discriminator | None
    ) -> dict[str, Tensor]:
        """Return the weighted terms of the tokenizer's loss, without the quantizer's."""
        weights = self.options.weights
        terms = {"pixel": pixel_loss(video_B3THW, rebuilt_B3THW, weights)}
        if weights.perceptual:
            distance = perceptual_loss(self.features, video_B3THW, rebuilt_B3THW)
            terms["perceptual"] = weights.perceptual * distance
        if discriminator is not None:
            with self._autocast():
                logits = discriminator.judge_frozen(rebuilt_B3THW)
            terms["gan"] = weights.gan * hinge_generator_loss(logits)
        return terms

    def _backward_discriminator(
        self, discriminator: Discriminator, parts: Sequence[_VideoPart], rebuilt: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Compute the discriminator's gradients; return its loss and scores, this rank's share."""
        terms: dict[str, Tensor] = {}
        discriminator.optimizer.zero_grad()
        for part, rebuilt_B3THW in zip(parts, rebuilt, strict=True):
            with self._autocast():
                own = discriminator.terms(part.video_B3THW, rebuilt_B3THW)
            (part.weight * own["critic"]).backward()
            _add(terms, own, part.weight)
        return terms

    def _set_rates(self) -> None:
        rate = self._optimizer_config.rate(self.step, self.options.steps)
        set_rate(self.optimizer, rate)
        if self.discriminator is not None:
            set_rate(self.discriminator.optimizer, rate)

    def _reduce_and_clip(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Add up the gradients of all ranks and clip their norm.

        Returns:
            The norm before clipping; if it is not finite, the gradients are unusable.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        all_reduce_gradients(weights)
        return torch.nn.utils.clip_grad_norm_(weights, self._optimizer_config.clip_norm)

    def _finish_step(self, metrics: Metrics) -> None:
        every = max(1, self.options.steps // _HISTORY_POINTS)
        is_point = self.step % every == 0 or self.step == self.options.steps - 1
        self.step += 1
        if is_point:
            self.log_metrics(finite(metrics))


def _digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the values of tensors, in hex."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], weight: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + weight * value.detach().float()


def _values(scalars: Mapping[str, Tensor]) -> Metrics:
    """Return scalars of the device in one transfer: each `.item()` would wait for it by itself."""
    return dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))


def _sum_of_ranks(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add up the shares of all ranks, in one collective."""
    total = all_reduce_sum(torch.stack([*sums.values()]))
    return dict(zip(sums, total, strict=True))
