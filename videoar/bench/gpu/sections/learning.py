"""A few minutes of training: a tokenizer on given clips, a transformer on latents, val curves.

The number of steps follows from the time that is left and the time of a step, so that the learning
rate's schedule ends with the section.

B batch, T latent frames or frames, S scales, K bits, H W latent grid or pixels.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from videoar.bench.gpu.measure import first_seconds
from videoar.bench.gpu.section import Result, Section
from videoar.bench.gpu.subject import MemoryData, MemoryLoader, build
from videoar.bench.gpu.workload import ClipFile
from videoar.model.schedule import scale_schedule
from videoar.model.tokenizer.config import TOKENIZERS, LossWeights, TokenizerTraining
from videoar.model.tokenizer.losses import psnr
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames
from videoar.model.transformer.config import CFECConfig
from videoar.training.config import OptimizerConfig, Phase, TransformerTraining, Validation
from videoar.training.tokenizer import TokenizerTrainer
from videoar.training.transformer import TransformerTrainer

_POINTS = 12
Kernel = Literal["auto", "dense"]
_TOKENIZER_SHARE, _TOKENIZER_MOST_S = 0.4, 90.0
_BATCH = 32


class _OutOfTimeError(Exception):
    """Steps took longer than the first ones promised."""


def run(section: Section) -> None:
    """Train a tokenizer if clips are given, then the transformer."""
    workload, data = section.workload, list[ClipFile]()
    if workload.clips is not None:
        section.case("tokenizer", _train_tokenizer, ClipFile.read(workload.clips, "frames"), data)
    elif workload.latents is not None:
        data.append(ClipFile.read(workload.latents, "latent"))
    if not data:
        cfg = workload.presets[workload.learner]
        data.append(ClipFile.random(cfg, workload.num_frames, 256))
    # Dense attention as well only if the other kernel does not run on this machine.
    kernels: tuple[Kernel, ...] = ("auto", "dense")
    for attention in kernels:
        if section.case(
            f"transformer, {attention} attention", _train_transformer, data[0], attention
        ):
            break


def _train_tokenizer(
    section: Section, result: Result, clips: ClipFile, data: list[ClipFile]
) -> None:
    workload, frames_BTHWC = section.workload, clips.values
    cfg = TOKENIZERS[workload.learner].for_size(*frames_BTHWC.shape[2:4])
    train = list(frames_BTHWC[~clips.is_val].numpy())
    batch = min(_BATCH, len(train))
    left = min(section.seconds_left, workload.learning_most_s)
    seconds = min(_TOKENIZER_MOST_S, _TOKENIZER_SHARE * left)

    def trainer(steps: int) -> TokenizerTrainer:
        options = TokenizerTraining(
            steps=steps, batch_clips=batch, excerpt_frames=frames_BTHWC.shape[1],
            precision="bf16", learning_rate=1e-3, image_steps=steps // 4, ema=0.99,
            weights=LossWeights(l2=2.0),
        )  # fmt: skip
        return TokenizerTrainer(cfg, options, train, device=section.device.type)

    steps = _steps(trainer(1000).train_step, section, seconds, result)
    training = trainer(steps)
    curve: list[dict[str, float]] = []
    val = frames_BTHWC[clips.is_val]
    started = time.monotonic()
    while training.step < steps and time.monotonic() - started < 1.2 * seconds:
        metrics = training.train_step()
        if training.step % max(1, steps // _POINTS) == 0 or training.step == steps:
            point = {"step": training.step, "train_psnr_db": metrics["psnr_db"]}
            curve.append(point | {"val_psnr_db": _val_psnr(training.averaged(), val)})
            result["curve"] = curve
            section.save()
    net = training.averaged()
    latents = torch.cat([_encode(net, part).cpu() for part in frames_BTHWC.split(_BATCH)])
    data.append(ClipFile(latents.transpose(1, 2).half(), clips.captions, clips.is_val, "clips"))
    result |= {
        "preset": workload.learner, "steps": training.step, "batch": batch,
        "train_clips": len(train), "val_clips": len(val), **curve[-1],
        "latent_norm": float(latents.norm(dim=1).mean()),
    }  # fmt: skip


@torch.no_grad()
def _encode(net: VideoTokenizer, frames_BTHWC: Tensor) -> Tensor:
    device = next(net.parameters()).device
    return net.encode(video_from_frames(frames_BTHWC.to(device)))


@torch.no_grad()
def _val_psnr(net: VideoTokenizer, frames_BTHWC: Tensor) -> float:
    """Return the mean PSNR in dB through the quantizer."""
    device = next(net.parameters()).device
    total = 0.0
    for part in frames_BTHWC.split(_BATCH):
        video = video_from_frames(part.to(device))
        total += float(psnr(video, net.detokenize(net.tokenize(video)))) * len(part)
    return total / len(frames_BTHWC)


def _steps(step: Callable[[], object], section: Section, seconds: float, result: Result) -> int:
    """Return how many steps fit into a time, from the time of a few after the first two."""
    for _ in range(2):
        step()
    per_step = first_seconds(lambda: [step() for _ in range(5)], section.device) / 5
    result["step_ms"] = round(1000 * per_step, 2)
    return max(_POINTS, int(seconds / per_step))


def _train_transformer(section: Section, result: Result, data: ClipFile, attention: Kernel) -> None:
    """Train with the real trainer and its held-out numbers."""
    seconds = 0.85 * min(section.seconds_left, section.workload.learning_most_s)
    probed = _trainer(section, data, attention, 1000)
    (phase,) = probed.training.phases
    batch = next(iter(probed.data.train(phase)))
    steps = _steps(lambda: probed.take_step(batch, phase, 0), section, seconds, result)
    trainer, started = _trainer(section, data, attention, steps), time.monotonic()
    curve: list[dict[str, float]] = []

    def after_step(trainer: TransformerTrainer) -> None:
        elapsed_s = time.monotonic() - started
        last = trainer.history[-1] if trainer.history else {}
        if "val/loss" in last and (not curve or curve[-1]["step"] != last["step"]):
            curve.append(_without_frames(last) | {"seconds": round(elapsed_s, 2)})
            result["curve"] = curve
            section.save()
        if elapsed_s > 1.2 * seconds:
            raise _OutOfTimeError

    with suppress(_OutOfTimeError):
        trainer.run(after_step)
    result |= {
        "preset": section.workload.learner, "data": data.source, "steps": trainer.step,
        "batch": trainer.training.phases[0].batch_size,
        "train_clips": int((~data.is_val).sum()), "val_clips": int(data.is_val.sum()),
        "train_loss": trainer.metrics["loss"], "last_val": trainer.held_out,
        "least_val_loss": min(point["val/loss"] for point in curve),
    }  # fmt: skip


def _without_frames(point: Mapping[str, float]) -> dict[str, float]:
    """Return a point of a curve without its blocks: those of the last one are kept beside it."""
    return {name: value for name, value in point.items() if "/block_" not in name}


def _trainer(section: Section, data: ClipFile, attention: Kernel, steps: int) -> TransformerTrainer:
    _, bits, height, width = data.values.shape[1:]
    learner = section.workload.learner
    scales = TOKENIZERS[learner].scales
    if scales[-1] != (height, width):
        scales = scale_schedule(height, width)
    cfg = section.workload.presets[learner].model_copy(update={"num_bits": bits, "scales": scales})
    batch = min(2 * _BATCH, int((~data.is_val).sum()))
    training = TransformerTraining(
        phases=(Phase(steps=steps, batch_size=batch),), precision="bf16",
        optimizer=OptimizerConfig(learning_rate=3e-4, ema=0.99),
        corruption=CFECConfig(p_max=0.1, delta=0.0), validation=Validation(points=_POINTS),
        compile=False,  # a minute of training would be half compilation
    )  # fmt: skip
    in_memory = MemoryData(_loader(data, ~data.is_val, batch), _loader(data, data.is_val, _BATCH))
    model = build(cfg, section.device)
    model.attention = attention
    return TransformerTrainer(model, training, in_memory)


def _loader(data: ClipFile, is_in_split: Tensor, batch: int) -> MemoryLoader:
    rows = is_in_split.nonzero().flatten()
    return MemoryLoader(data.values[rows], [data.captions[i] for i in rows], batch)
