"""A tiny transformer in float64 and the logits of given bits."""

import torch

from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR, teacher_forcing_inputs

TINY = PRESETS["tiny"].model_copy(update={"scales": ((1, 1), (2, 2), (3, 3))})
PROMPTS = ["a red circle moving left", "blue square"]


def tiny_transformer(**changes):
    """Return a model whose logits are far from 0; `changes` are fields of its config."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VideoAR(TINY.model_copy(update=changes)).double().eval()
    model.head.weight.data.mul_(50)
    return model


def make_bits(seed=0, frames=3, batch=2):
    """Draw bits of every scale."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, frames, h, w, 8, generator=draw) < 0.5 for h, w in TINY.scales]


def inputs_of(model, bits):
    """Return the layout of a video with these bits, and the inputs of all of its blocks."""
    layout = model.layout(4 * bits[0].shape[1] - 3)
    history = MultiScaleBSQ(8, TINY.scales).accumulate(bits)
    return layout, teacher_forcing_inputs(layout.scheme, history)


@torch.no_grad()
def logits_of(model, bits, prompts=PROMPTS):
    """Return the logits of one pass over given bits."""
    layout, features = inputs_of(model, bits)
    return model(features, model.encode_text(prompts), layout)


def rows(model, frame, scale, frames=3):
    """Return which tokens belong to a block."""
    layout = model.layout(4 * frames - 3)
    return (layout.frame_l == frame) & (layout.scale_l == scale)
