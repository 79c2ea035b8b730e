"""Train a tokenizer: reconstruct short excerpts of clips through the quantizer.

The one idea: the network is causal and convolutional, so excerpts of a few frames train what runs
on clips of any length and size, and cost less. Every step draws its clips from a generator seeded
by the step alone: a run that was killed goes on as it would have, any number of ranks sees the same
batches, and clips of the next one are read while this one computes. Where clips have several sizes,
a step has those of one, drawn in proportion to its clips; all sizes share all weights, each has
scales of its own.

Shape suffixes: B batch (of this rank), T frames, H W height and width, C channels.
Source: arXiv 2601.05966 section 4.1, equation 4; constants of `TokenizerTraining`.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from videoar.core.errors import ConfigError, StageError, TransientStorageError
from videoar.core.ids import seed_from
from videoar.model.tokenizer.config import TokenizerConfig, TokenizerTraining
from videoar.model.tokenizer.discriminator import (
    LeCam,
    PatchDiscriminator,
    hinge_critic_loss,
    hinge_generator_loss,
)
from videoar.model.tokenizer.losses import (
    FeatureNet,
    RandomFeatures,
    perceptual_loss,
    pixel_loss,
    psnr,
)
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames
from videoar.training.checkpoint import load_state, save_state
from videoar.training.collectives import of_all_ranks, sum_gradients, sum_over_ranks
from videoar.training.config import OptimizerConfig
from videoar.training.optimizer import MovingAverage, Patience, finite, make_adamw, set_rate

Metrics = dict[str, float]
_HISTORY_POINTS = 100
_SCORES = ("real", "fake")


class Clips(Protocol):
    """Clips by number, decoded early or when asked for: frames_THWC, uint8 RGB."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Return one clip."""
        ...


class _Batch(NamedTuple):
    """A rank's share of a batch, in memory."""

    parts: list[tuple[np.ndarray, float]]
    """frames_BTHWC, uint8, and weight of each part."""
    draw: np.random.Generator
    """Of the step, for what else is drawn."""


class _Part(NamedTuple):
    """Some items of a rank's share of the batch, all of one length."""

    video: Tensor
    """[B, 3, T, H, W]"""
    weight: float
    """Share of the batch: the weights of all parts of all ranks add up to 1."""


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
        fewest = min(len(cfg.for_size(*size).scales) for size in set(sizes_px))
        if options.drop_scales >= fewest:
            raise ConfigError("drop_scales", f"leaves none of {fewest} scales")
        cfg.num_latent_frames(options.excerpt_frames)
        self.options, self.clips = options, clips
        _, self._size_N = np.unique(np.array(sizes_px), axis=0, return_inverse=True)
        self.rank, self.world_size, self.device = rank, world_size, device
        self.step = 0
        self._patience = Patience()
        self._reader = ThreadPoolExecutor(1, "clips")  # one: clips need not bear more
        self._reading: dict[int, Future[_Batch]] = {}
        self._compared = world_size == 1
        self.history: list[dict[str, float]] = []
        self._optimizer_config = OptimizerConfig(
            learning_rate=options.learning_rate, weight_decay=0.0, ema=options.ema
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.net = VideoTokenizer(cfg)
            if start is not None:
                start(self.net)
            self.net.to(device)
            judged = options.weights.gan > 0
            self.critic = _Critic(self._optimizer_config, device) if judged else None
        self.features = features or RandomFeatures(options.seed)
        if isinstance(self.features, nn.Module):
            self.features.to(device)
        self.optimizer = make_adamw(self.net.parameters(), self._optimizer_config)
        self.average = MovingAverage(self.net, options.ema)

    def train_step(self) -> Metrics:
        """Take one step; return its losses, PSNR in dB and the mean norm of the latents.

        All are means over the whole batch, on whatever ranks it lies. A step whose loss or gradient
        is not finite is skipped: it changes neither weights nor running means.

        Raises:
            StageError: on all ranks. They begin with other weights, or several steps in a row were
                not finite.
            TransientStorageError: on all ranks. They begin at other steps.
            WorkerLostError: another rank is gone.
        """
        if not self._compared:
            self._compare_ranks()
        self._set_rates()
        batch = self._next_batch()
        parts = [self._part(*part) for part in batch.parts]
        net = self.net.for_size(*parts[0].video.shape[-2:])
        kept = self._kept_scales(batch.draw, len(net.cfg.scales))
        critic = self.critic if self.step >= self.options.weights.gan_start else None
        ready, whole_mean_p_SK = self._look_ahead(net, parts, kept)
        terms: dict[str, Tensor] = {}
        rebuilt: list[Tensor] = []
        for part in parts:
            with self._autocast():
                latent = net.encode(part.video) if ready is None else ready
                quantized = net.quantizer(latent, kept, whole_mean_p_SK)
                rebuilt_B3THW = net.decode(quantized.latent_BKTHW).float()
            own = {
                "quantizer": self.options.weights.quantizer * quantized.loss,
                **self._terms(part.video, rebuilt_B3THW, critic),
            }
            loss = torch.stack(list(own.values())).sum()
            if not rebuilt:  # as late as this: freed earlier, they cost a CPU 10 % in page faults
                self.optimizer.zero_grad()
            (part.weight * loss).backward()
            rebuilt.append(rebuilt_B3THW.detach())
            own |= {
                "loss": loss,
                "psnr_db": psnr(part.video, rebuilt[-1]),
                "latent_norm": latent.float().norm(dim=1).mean(),
            }
            _add(terms, own, part.weight)
        norms = {"gradient norm of the tokenizer": self._clip(self.optimizer)}
        if critic is not None:
            terms |= self._criticize(critic, parts, rebuilt)
            norms["gradient norm of the critic"] = self._clip(critic.optimizer)
        terms = _over_ranks(terms)
        scores = [terms.pop(name) for name in _SCORES if name in terms]
        metrics = dict(zip(terms, torch.stack([*terms.values()]).tolist(), strict=True))
        if self._patience.allows(self.step, {"loss": metrics["loss"], **norms}):
            self.optimizer.step()
            self.average.update(self.net, self.step)
            if critic is not None:
                critic.optimizer.step()
                critic.lecam.update(*scores)
        self._remember(metrics)
        return metrics

    def averaged(self) -> VideoTokenizer:
        """Return the network with averaged weights, in evaluation mode: what is published."""
        net = VideoTokenizer(self.net.cfg)
        net.load_state_dict(self.average.weights)
        return net.to(self.device).eval()

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on into an existing folder."""
        progress = {"step": self.step, "history": self.history}
        save_state(folder, self._state(), progress | {"bad_steps": self._patience.bad_steps})

    def load(self, folder: Path) -> None:
        """Go on where `save` was called."""
        progress = load_state(folder, self._state())
        self.step, self.history = progress["step"], progress["history"]
        self._patience.bad_steps = progress["bad_steps"]

    def _compare_ranks(self) -> None:
        """Refuse, by one exchange, ranks that would train apart: nothing would tell them later."""
        nets = (self.net, self.critic, self.features)
        states = [net.state_dict() for net in nets if isinstance(net, nn.Module)]
        weights = _digest(w for state in (*states, self.average.weights) for w in state.values())
        mine = torch.tensor([self.step, int(weights[:15], 16)], device=self.device)
        found = of_all_ranks(mine)
        if late := [rank for rank, own in enumerate(found) if own[0] != found[0][0]]:
            what = f"ranks {late} begin at another step than rank 0: one was committed meanwhile"
            raise TransientStorageError("train_tokenizer", what)
        if others := [rank for rank, own in enumerate(found) if not torch.equal(own, found[0])]:
            what = f"ranks {others} begin with other weights than rank 0"
            hint = "let every rank find the same lpips_weights and image_weights"
            raise StageError("train_tokenizer", what, hint)
        self._compared = True

    def _state(self) -> dict[str, Any]:
        state = {"net": self.net, "adam": self.optimizer, "average": self.average.weights}
        if self.critic is not None:
            state |= {"critic": self.critic, "critic_adam": self.critic.optimizer}
        return state

    def _next_batch(self) -> _Batch:
        """Return what this step trains on, and begin to read what the next one does."""
        wanted = self._reading.pop(self.step, None) or self._read(self.step)
        batch = wanted.result()
        if (later := self.step + 1) < self.options.steps:
            self._reading = {later: self._read(later)}
        return batch

    def _read(self, step: int) -> Future[_Batch]:
        return self._reader.submit(copy_context().run, self._batch, step)

    def _batch(self, step: int) -> _Batch:
        """Draw this rank's items of a step, where they begin, and which are single frames."""
        options = self.options
        draw = np.random.default_rng(seed_from("tokenizer", options.seed, step))
        num_frames = 1 if step < options.image_steps else options.excerpt_frames
        count = options.batch_clips * (options.excerpt_frames // num_frames)
        pool = self._pool(step)
        chosen, places = pool[draw.integers(len(pool), size=count)], draw.random(count)
        num_images = round(options.image_share * count)
        lengths = np.where(np.arange(count) < num_images, 1, num_frames)
        mine = np.arange(self.rank, count, self.world_size)
        parts = []
        for length in sorted({1, num_frames}):
            items = mine[lengths[mine] == length]
            for some in np.array_split(items, min(options.accumulate, len(items)) or 1):
                excerpts = [_excerpt(self.clips[int(chosen[i])], length, places[i]) for i in some]
                if excerpts:
                    parts.append((np.stack(excerpts), len(some) / count))
        return _Batch(parts, draw)

    def _part(self, frames_BTHWC: np.ndarray, weight: float) -> _Part:
        return _Part(video_from_frames(torch.from_numpy(frames_BTHWC).to(self.device)), weight)

    def _pool(self, step: int) -> np.ndarray:
        """Return the numbers of the clips that the step may draw: all those of one size.

        The size is that of a clip drawn from all, by a generator of its own: with one size the
        clips are then drawn as if there were no others.
        """
        draw = np.random.default_rng(seed_from("tokenizer size", self.options.seed, step))
        return np.flatnonzero(self._size_N == self._size_N[draw.integers(len(self._size_N))])

    def _kept_scales(self, draw: np.random.Generator, num_scales: int) -> list[bool] | None:
        """Draw which scales take part in the step: the same on all ranks."""
        num_risky = self.options.drop_scales
        if not num_risky:
            return None
        kept = draw.random(num_risky) >= self.options.drop_probability
        return [True] * (num_scales - num_risky) + kept.tolist()

    def _look_ahead(
        self, net: VideoTokenizer, parts: Sequence[_Part], kept: Sequence[bool] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return how the whole batch uses the bits, unless the only part will show that itself.

        Before it the latents of the only part of a rank, so that nothing is encoded twice.
        """
        if len(parts) == self.world_size == 1:
            return None, None
        alone = len(parts) == 1
        mean_p_SK, latent = torch.zeros((), device=self.device), None
        for part in parts:
            with torch.set_grad_enabled(alone), self._autocast():
                latent = net.encode(part.video)
            with torch.no_grad():
                used = net.quantizer(latent, kept).mean_p_SK
            mean_p_SK = mean_p_SK + part.weight * used
        return latent if alone else None, sum_over_ranks(mean_p_SK)

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.options.precision == "bf16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=enabled)

    def _terms(
        self, video_B3THW: Tensor, rebuilt_B3THW: Tensor, critic: "_Critic | None"
    ) -> dict[str, Tensor]:
        weights = self.options.weights
        terms = {"pixel": pixel_loss(video_B3THW, rebuilt_B3THW, weights)}
        if weights.perceptual:
            distance = perceptual_loss(self.features, video_B3THW, rebuilt_B3THW)
            terms["perceptual"] = weights.perceptual * distance
        if critic is not None:
            with self._autocast():
                logits = critic.judge(rebuilt_B3THW)
            terms["gan"] = weights.gan * hinge_generator_loss(logits)
        return terms

    def _criticize(
        self, critic: "_Critic", parts: Sequence[_Part], rebuilt: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Leave the critic's gradients; return its loss and scores of this rank's share."""
        terms: dict[str, Tensor] = {}
        critic.optimizer.zero_grad()  # also what the tokenizer's loss has left in these weights
        for part, rebuilt_B3THW in zip(parts, rebuilt, strict=True):
            with self._autocast():
                real, fake = critic.judge(part.video), critic.judge(rebuilt_B3THW)
            loss = hinge_critic_loss(real, fake)
            loss = loss + self.options.weights.lecam * critic.lecam(real, fake)
            (part.weight * loss).backward()
            scores = dict(zip(_SCORES, (real.mean(), fake.mean()), strict=True))
            _add(terms, {"critic": loss, **scores}, part.weight)
        return terms

    def _set_rates(self) -> None:
        rate = self._optimizer_config.rate(self.step, self.options.steps)
        set_rate(self.optimizer, rate)
        if self.critic is not None:
            set_rate(self.critic.optimizer, rate)

    def _clip(self, optimizer: torch.optim.Optimizer) -> float:
        """Make an optimizer's gradients those of the batch, and no longer than they may be.

        Returns:
            How long they were; where that is not finite, they are lost.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        sum_gradients(weights)
        return torch.nn.utils.clip_grad_norm_(weights, self._optimizer_config.clip_norm).item()

    def remember(self, metrics: Metrics) -> None:
        """Add what was measured after the last step to the history."""
        last = self.step - 1
        if not self.history or self.history[-1]["step"] != last:
            self.history.append({"step": last})
        self.history[-1] |= metrics

    def _remember(self, metrics: Metrics) -> None:
        every = max(1, self.options.steps // _HISTORY_POINTS)
        is_point = self.step % every == 0 or self.step == self.options.steps - 1
        self.step += 1
        if is_point:
            self.remember(finite(metrics))


class _Critic(nn.Module):
    """The discriminator with what belongs to it."""

    def __init__(self, config: OptimizerConfig, device: str) -> None:
        super().__init__()
        self.judge = PatchDiscriminator()
        self.lecam = LeCam()
        self.to(device)
        self.optimizer = make_adamw(self.judge.parameters(), config)


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


def _digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the values of tensors, in hex."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], weight: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + weight * value.detach().float()


def _over_ranks(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add up the shares of all ranks, in one exchange."""
    whole = sum_over_ranks(torch.stack([*sums.values()]))
    return dict(zip(sums, whole, strict=True))
