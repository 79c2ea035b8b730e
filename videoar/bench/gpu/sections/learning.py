"""A few minutes of training: a tokenizer on given clips, a transformer on latents, val curves.

The number of steps follows from the time that is left and the time of a step, so that the learning
rate's schedule ends with the section.

B batch, T latent frames or frames, S scales, K bits, H W latent grid or pixels.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.bench.gpu.measure import first_seconds
from videoar.bench.gpu.record import Result, Section
from videoar.bench.gpu.subject import build, no_loader
from videoar.bench.gpu.workload import ClipFile, LatentFile, Workload
from videoar.model.schedule import scale_schedule
from videoar.model.tokenizer.config import TOKENIZERS, LossWeights, TokenizerTraining
from videoar.model.tokenizer.losses import psnr
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.config import CFECConfig
from videoar.model.transformer.network import VideoAR, flatten_bits, teacher_forcing_inputs
from videoar.training.config import OptimizerConfig, Phase, TransformerTraining
from videoar.training.tokenizer import TokenizerTrainer
from videoar.training.transformer import TransformerTrainer

_POINTS = 12
_TOKENIZER_SHARE, _TOKENIZER_MOST_S = 0.4, 90.0
_BATCH = 32


def run(section: Section, workload: Workload) -> None:
    """Train a tokenizer if clips are given, then the transformer."""
    data: list[LatentFile] = []
    if workload.clips is not None:
        clips = ClipFile.read(workload.clips)
        section.case("tokenizer", partial(_train_tokenizer, section, workload, clips, data))
    elif workload.latents is not None:
        data.append(LatentFile.read(workload.latents))
    if not data:
        cfg = workload.presets[workload.learner]
        data.append(LatentFile.random(cfg, workload.num_frames, 256))
    section.case("transformer", partial(_train_transformer, section, workload, data[0]))


def _train_tokenizer(
    section: Section, workload: Workload, clips: ClipFile, data: list[LatentFile], result: Result
) -> None:
    device = section.device
    base = TOKENIZERS[workload.learner]
    cfg = base.for_size(*clips.frames_BTHWC.shape[2:4])
    train = list(clips.frames_BTHWC[~clips.is_val].numpy())
    batch = min(_BATCH, len(train))
    left = min(section.seconds_left, workload.learning_most_s)
    seconds = min(_TOKENIZER_MOST_S, _TOKENIZER_SHARE * left)

    def trainer(steps: int) -> TokenizerTrainer:
        options = TokenizerTraining(
            steps=steps, batch_clips=batch, excerpt_frames=clips.frames_BTHWC.shape[1],
            precision="bf16", learning_rate=1e-3, image_steps=steps // 4, ema=0.99,
            weights=LossWeights(l2=10.0),
        )  # fmt: skip
        return TokenizerTrainer(cfg, options, train, device=device.type)

    steps = _steps(trainer(1000).train_step, section, seconds)
    training = trainer(steps)
    curve: list[dict[str, float]] = []
    val = clips.frames_BTHWC[clips.is_val]
    started = time.monotonic()
    while training.step < steps and time.monotonic() - started < 1.2 * seconds:
        metrics = training.train_step()
        if training.step % max(1, steps // _POINTS) == 0 or training.step == steps:
            point = {"step": training.step, "train_psnr_db": metrics["psnr_db"]}
            curve.append(point | {"val_psnr_db": _val_psnr(training.averaged(), val)})
            result["curve"] = curve
            section.save()
    net = training.averaged()
    latents = torch.cat([_encode(net, part).cpu() for part in clips.frames_BTHWC.split(_BATCH)])
    data.append(LatentFile(latents.transpose(1, 2).half(), clips.captions, clips.is_val, "clips"))
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


def _steps(step: Any, section: Section, seconds: float) -> int:  # noqa: ANN401 - any callable
    """Return how many steps fit into a time, from the time of a few after the first two."""
    for _ in range(2):
        step()
    per_step = first_seconds(lambda: [step() for _ in range(5)], section.device) / 5
    return max(_POINTS, int(seconds / per_step))


@dataclass(frozen=True)
class _Batches:
    """Random batches of the training rows, in memory."""

    data: LatentFile
    size: int

    def batch(self, step: int) -> dict[str, Any]:
        """Return the batch of a step."""
        rows = (~self.data.is_val).nonzero().flatten()
        generator = torch.Generator().manual_seed(step)
        chosen = rows[torch.randint(len(rows), (self.size,), generator=generator)]
        return {
            "latent_BTKHW": self.data.latent_BTKHW[chosen],
            "captions": [self.data.captions[i] for i in chosen],
            "global_size": self.size,
        }


def _train_transformer(
    section: Section, workload: Workload, data: LatentFile, result: Result
) -> None:
    frames, bits, height, width = data.latent_BTKHW.shape[1:]
    preset = workload.presets[workload.learner]
    scales = TOKENIZERS[workload.learner].scales
    if scales[-1] != (height, width):
        scales = scale_schedule(height, width)
    cfg = preset.model_copy(update={"num_bits": bits, "scales": scales})
    batches = _Batches(data, min(_BATCH, int((~data.is_val).sum())))
    seconds = 0.85 * min(section.seconds_left, workload.learning_most_s)

    def trainer(steps: int) -> TransformerTrainer:
        training = TransformerTraining(
            phases=(Phase(steps=steps, batch_size=batches.size),), precision="bf16",
            optimizer=OptimizerConfig(learning_rate=3e-4, ema=0.99),
            corruption=CFECConfig(p_max=0.1, delta=0.0),
        )  # fmt: skip
        model = build(cfg, section.device)
        return TransformerTrainer(model, training, no_loader)

    def step_of(own: TransformerTrainer) -> dict[str, float]:
        return own.take_step(batches.batch(own.step), own.training.phases[0], own.step)

    probe = trainer(1000)
    steps = _steps(lambda: step_of(probe), section, seconds)
    own, curve, started = trainer(steps), list[dict[str, Any]](), time.monotonic()
    while own.step < steps and time.monotonic() - started < 1.1 * seconds:
        metrics = step_of(own)
        if own.step % max(1, steps // _POINTS) == 0 or own.step == steps:
            nats_TS = held_out(own.model, data, frames)
            curve.append({
                "step": own.step, "seconds": round(time.monotonic() - started, 2),
                "train_loss": metrics["loss"], "val_nats": float(nats_TS.mean()),
                "val_nats_by_frame_and_scale": nats_TS.tolist(),
            })  # fmt: skip
            result["curve"] = curve
            section.save()
    result |= {
        "preset": workload.learner, "data": data.source, "steps": own.step, "batch": batches.size,
        "train_clips": int((~data.is_val).sum()), "val_clips": int(data.is_val.sum()),
        "train_loss": curve[-1]["train_loss"], "val_nats": curve[-1]["val_nats"],
        "least_val_nats": min(point["val_nats"] for point in curve),
    }  # fmt: skip


@torch.no_grad()
def held_out(model: VideoAR, data: LatentFile, frames: int) -> Tensor:
    """Return the nats per bit of the val clips by frame and scale, [T, S], without corruption."""
    cfg = model.cfg
    layout = model.layout(1 + cfg.time_stride * (frames - 1))
    quantizer = MultiScaleBSQ(cfg.num_bits, cfg.scales)
    rows = data.is_val.nonzero().flatten()
    total_L = torch.zeros(layout.offsets[-1], device=model.device)
    model.eval()
    for some in rows.split(_BATCH):
        latents = data.latent_BTKHW[some].to(model.device).transpose(1, 2)
        pyramid = quantizer.pyramid(latents)
        text = model.encode_text([data.captions[i] for i in some])
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            logits = model(teacher_forcing_inputs(layout.scheme, pyramid.accumulated), text, layout)
        labels = flatten_bits(layout.scheme, pyramid.bits).float()
        log_odds = logits[..., 1] - logits[..., 0]
        nats = F.binary_cross_entropy_with_logits(log_odds, labels, reduction="none")
        total_L += nats.mean(dim=2).sum(dim=0)
    model.train()
    of_block = [
        total_L[a:b].mean() for a, b in zip(layout.offsets, layout.offsets[1:], strict=False)
    ]
    return (torch.stack(of_block) / len(rows)).reshape(frames, len(cfg.scales)).cpu()
