"""Generate videos: one forward pass per wave of blocks, each appended to the cache.

One idea: a seed determines its sample, because every sample has its own generator and every bit
compares one uniform number with its probability. In fp32 that holds alone or in a batch, cached or
not; in bf16 only at an equal batch size and padding, because matrix kernels round by the shape of
the batch.

    17 frames, 6 scales: T' = 5 latent frames, S = 6, so 30 waves of one block

    wave 0     input: zeros                    -> bits of frame 0, scale 0
    wave 1     input: rebuilt latent of wave 0 -> bits of frame 0, scale 1
    ...
    wave 6     input: finished frame 0         -> bits of frame 1, scale 0

Cost: T' * S passes; guidance doubles the batch, not the passes.

    guidance   how strong the prompt is, per frame and scale
    settings   how bits are drawn
    decoder    the waves of one window of frames
    clips      whole clips: given frames, sliding windows, changes of the prompt, decoding to pixels

Source: arXiv 2601.05966 sections 4.3 and 6.1.
"""

from videoar.model.transformer.sampling.clips import (
    Sampled,
    SampledBits,
    SlidingWindow,
    Task,
    Waves,
    decode_latents,
    sample,
    sample_bits,
    stream,
)
from videoar.model.transformer.sampling.decoder import LatentFrame, Wave
from videoar.model.transformer.sampling.guidance import APG, GUIDANCE, Guidance, guidance_schedule
from videoar.model.transformer.sampling.settings import SamplerSettings

__all__ = [
    "APG", "GUIDANCE", "Guidance", "LatentFrame", "Sampled", "SampledBits", "SamplerSettings",
    "SlidingWindow", "Task", "Wave", "Waves", "decode_latents", "guidance_schedule", "sample",
    "sample_bits", "stream",
]  # fmt: skip
