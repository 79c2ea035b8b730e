"""The tokenizer: encoding, decoding and training, clips of the UCF length."""

from functools import partial

import numpy as np
import torch

from videoar.bench.gpu.measure import first_seconds, host_syncs, median_ms, peak_memory
from videoar.bench.gpu.record import Result, Section
from videoar.bench.gpu.workload import Workload
from videoar.model.tokenizer.config import LossWeights, TokenizerTraining
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.training.tokenizer import TokenizerTrainer


def run(section: Section, workload: Workload) -> None:
    """Measure; bf16 first."""
    with torch.device(section.device):
        net = VideoTokenizer(workload.tokenizer).eval()
    for size_px in workload.tokenizer_sizes_px:
        for is_bf16 in (True, False):
            case = f"{size_px} px, {'bf16' if is_bf16 else 'fp32'}"
            part = partial(_rate, section, workload, net.for_size(size_px, size_px), is_bf16)
            section.case(f"encode, {case}", partial(part, "encode"))
            section.case(f"decode, {case}", partial(part, "decode"))
    for gan in (0.0, 0.1):
        name = f"training step, {workload.tokenizer_sizes_px[0]} px, bf16, gan {gan}"
        section.case(name, partial(_training, section, workload, gan))


def _rate(
    section: Section,
    workload: Workload,
    net: VideoTokenizer,
    is_bf16: bool,
    what: str,
    result: Result,
) -> None:
    batch, device = workload.tokenizer_batch, section.device
    video = torch.rand(batch, 3, workload.num_frames, *net.cfg.size_px, device=device) * 2 - 1
    frames = net.cfg.num_latent_frames(workload.num_frames)
    latent = torch.randn(batch, net.cfg.num_bits, frames, *net.cfg.scales[-1], device=device)

    def encode() -> object:
        return net.tokenize(video)

    def decode() -> object:
        return net.detokenize(bits)

    bits = net.quantizer.encode(latent)
    work = encode if what == "encode" else decode
    with (
        torch.no_grad(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16),
        peak_memory(device, result),
    ):
        ms = median_ms(work, device, seconds=min(2.0, section.seconds_left / 8))
    result |= {"batch": batch, "ms": round(ms, 2), "clips_per_s": round(1000 * batch / ms, 2)}


def _training(section: Section, workload: Workload, gan: float, result: Result) -> None:
    batch, size_px = workload.tokenizer_batch, workload.tokenizer_sizes_px[0]
    random = np.random.default_rng(0)
    shape = (batch, workload.num_frames, size_px, size_px, 3)
    clips = random.integers(0, 256, shape, np.uint8)
    options = TokenizerTraining(
        steps=100_000, batch_clips=batch, excerpt_frames=workload.num_frames, precision="bf16",
        weights=LossWeights(perceptual=1.0, gan=gan),
    )  # fmt: skip
    cfg = workload.tokenizer.for_size(size_px, size_px)
    trainer = TokenizerTrainer(cfg, options, list(clips), device=section.device.type)
    with peak_memory(section.device, result):
        result["first_step_s"] = round(first_seconds(trainer.train_step, section.device), 3)
        ms = median_ms(trainer.train_step, section.device, seconds=3.0)
    result |= {"batch": batch, "step_ms": round(ms, 2), "clips_per_s": round(1000 * batch / ms, 2)}
    result |= host_syncs(trainer.train_step, section.device)
