"""Layouts of many sizes with one model; inputs, labels and statistics of their blocks."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from videoar.model.schedule import scale_schedule
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import compile_scheme
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.loss import block_statistics
from videoar.model.transformer.network import (
    VideoAR,
    block_input,
    flatten_bits,
    teacher_forcing_inputs,
)
from videoar.model.transformer.schemes import Block, NextFrameNextScale

TINY = PRESETS["tiny"]
SHAPES = [(1, (8, 8)), (9, (3, 5)), (9, (5, 3)), (5, (12, 12))]


def inputs_by_block(scheme, accumulated):
    inputs = []
    for block in scheme.blocks:
        if block.parent is None:
            source = torch.zeros_like(accumulated[0][:, 0])
        else:
            parent = scheme.blocks[block.parent]
            source = accumulated[parent.scale][:, parent.frame]
        inputs.append(block_input(source, block.grid, scheme.input_down))
    return torch.cat(inputs, dim=1)


@dataclass(frozen=True)
class CoarseFirst:
    """Scale 0 of all frames, then the other scales frame by frame, latest frame first."""

    frames: int
    scales: tuple
    input_down = "area"

    @property
    def blocks(self):
        rest = range(1, len(self.scales))
        return tuple(
            Block(t, 0, self.scales[0], t - 1 if t else None) for t in range(self.frames)
        ) + (
            tuple(
                Block(t, k, self.scales[k], t if k == 1 else self.frames + i * len(rest) + k - 2)
                for i, t in enumerate(reversed(range(self.frames)))
                for k in rest
            )
        )


@pytest.mark.parametrize("order", [NextFrameNextScale, CoarseFirst])
@pytest.mark.parametrize("grid", [(8, 8), (3, 5)])
def test_inputs_are_those_of_a_loop_over_blocks(order, grid):
    scales = scale_schedule(*grid)
    scheme = order(3, scales)
    latent_BKTHW = torch.randn(2, 8, 3, *grid, generator=torch.Generator().manual_seed(0))
    accumulated = MultiScaleBSQ(8, scales).pyramid(latent_BKTHW).accumulated
    wanted = inputs_by_block(scheme, accumulated)
    assert torch.equal(teacher_forcing_inputs(scheme, accumulated), wanted)
    assert wanted[:, 1:].abs().amin(dim=(0, 2)).max() > 0


def test_sizes_orientations_and_images_train_with_one_model():
    torch.manual_seed(0)
    model = VideoAR(TINY).train()
    for num_frames, grid in SHAPES:
        scales = scale_schedule(*grid)
        layout = model.layout(num_frames, scales)
        frames = 1 + num_frames // 4
        pyramid = MultiScaleBSQ(8, scales).pyramid(torch.randn(2, 8, frames, *grid))
        logits = model(
            teacher_forcing_inputs(layout.scheme, pyramid.accumulated),
            model.encode_text(["a", "b c"]),
            layout,
        )
        assert flatten_bits(layout.scheme, pyramid.bits).shape == logits.shape[:3]
        assert (layout.num_frames, layout.num_scales) == (frames, len(scales))
        logits.square().mean().backward()
    assert model.layout(5) is model.layout(5, TINY.scales)


def test_more_scales_than_embeddings_are_rejected():
    few = TINY.model_copy(update={"max_scales": 6})
    with pytest.raises(ValueError, match="7 scales, more than max_scales=6"):
        few.scheme_for(5, scale_schedule(16, 16))


def test_block_statistics_are_plain_means_and_add_up_over_rows():
    layout = compile_scheme(NextFrameNextScale(2, ((1, 1), (2, 3))), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 14, 4, 2, generator=draw) * 3
    bits = torch.rand(3, 14, 4, generator=draw) < 0.5
    found = block_statistics(logits, bits, layout)
    nats = F.cross_entropy(logits.flatten(0, 2), bits.flatten().long(), reduction="none")
    right = (logits.argmax(-1) == bits).float()
    for values, found_TS in ((nats.view(3, 14, 4), found.nats_TS), (right, found.accuracy_TS)):
        for t in range(2):
            for k, (first, last) in enumerate(((0, 1), (1, 7))):
                wanted = 3 * values[:, 7 * t + first : 7 * t + last].mean()
                torch.testing.assert_close(found_TS[t, k], wanted)
    halves = [block_statistics(logits[rows], bits[rows], layout) for rows in ([0], [1, 2])]
    torch.testing.assert_close(halves[0].nats_TS + halves[1].nats_TS, found.nats_TS)
