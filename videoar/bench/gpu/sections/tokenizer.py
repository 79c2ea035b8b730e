"""The tokenizer: encoding, decoding and training, clips of the UCF length."""

import numpy as np
import torch

from videoar.bench.gpu.measure import clip_rate, step_rate
from videoar.bench.gpu.section import Result, Section
from videoar.model.tokenizer.config import LossWeights, TokenizerTraining
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.training.tokenizer import TokenizerTrainer


def run(section: Section) -> None:
    """Measure; bf16 first."""
    sizes_px = section.workload.tokenizer_sizes_px
    with torch.device(section.device):
        net = VideoTokenizer(section.workload.tokenizer).eval()
    for size_px in sizes_px:
        for is_bf16 in (True, False):
            sized = net.for_size(size_px, size_px)
            for what in ("encode", "decode"):
                case = f"{what}, {size_px} px, {'bf16' if is_bf16 else 'fp32'}"
                section.case(case, _rate, sized, is_bf16, what)
    for batch in (1, section.workload.tokenizer_batch):
        case = f"decode, {sizes_px[0]} px, bf16 weights, channels last, batch {batch}"
        section.case(case, _channels_last, batch)
    for gan in (0.0, 0.1):
        section.case(f"training step, {sizes_px[0]} px, bf16, gan {gan}", _training, gan)


@torch.no_grad()
def _rate(section: Section, result: Result, net: VideoTokenizer, is_bf16: bool, what: str) -> None:
    workload, device = section.workload, section.device
    batch, num_frames = workload.tokenizer_batch, workload.num_frames
    video = torch.rand(batch, 3, num_frames, *net.cfg.size_px, device=device) * 2 - 1
    frames = net.cfg.num_latent_frames(num_frames)
    latent = torch.randn(batch, net.cfg.num_bits, frames, *net.cfg.scales[-1], device=device)
    bits = net.quantizer.encode(latent)
    seconds = min(2.0, section.seconds_left / 8)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
        if what == "encode":
            clip_rate(lambda: net.tokenize(video), device, batch, seconds, result)
        else:
            clip_rate(lambda: net.detokenize(bits), device, batch, seconds, result)


@torch.no_grad()
def _channels_last(section: Section, result: Result, batch: int) -> None:
    """Measure the decoder in the layout of tensor cores, with the fastest kernels of all."""
    workload, device = section.workload, section.device
    net = VideoTokenizer(workload.tokenizer).eval().to(device, torch.bfloat16)
    net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    frames = net.cfg.num_latent_frames(workload.num_frames)
    shape = (batch, net.cfg.num_bits, frames, *net.cfg.scales[-1])
    latent = torch.randn(shape, device=device, dtype=torch.bfloat16)
    latent = latent.to(memory_format=torch.channels_last_3d)
    torch.backends.cudnn.benchmark = True
    try:
        clip_rate(lambda: net.decode(latent), device, batch, 2.0, result)
    finally:
        torch.backends.cudnn.benchmark = False


def _training(section: Section, result: Result, gan: float) -> None:
    workload, size_px = section.workload, section.workload.tokenizer_sizes_px[0]
    batch, frames = workload.tokenizer_batch, workload.num_frames
    random = np.random.default_rng(0)
    clips = random.integers(0, 256, (batch, frames, size_px, size_px, 3), np.uint8)
    options = TokenizerTraining(
        steps=100_000, batch_clips=batch, excerpt_frames=frames, precision="bf16",
        weights=LossWeights(perceptual=1.0, gan=gan),
    )  # fmt: skip
    cfg = workload.tokenizer.for_size(size_px, size_px)
    trainer = TokenizerTrainer(cfg, options, list(clips), device=section.device.type)
    step_rate(trainer.train_step, section.device, batch, 3.0, result)
