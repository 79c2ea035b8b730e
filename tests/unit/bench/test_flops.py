"""Operations counted by formula are those that torch counts while the network runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videoar.bench.flops import (
    attention_pairs,
    forward_flops,
    peak_flops,
    training_flops,
)
from videoar.model.transformer.config import PRESETS, ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling import SamplerSettings, sample_bits
from videoar.model.transformer.schemes import attention_cells

_ODD = ModelConfig(
    depth=3, width=48, heads=3, ff_width=56, num_bits=5, scales=((1, 1), (2, 3), (3, 5)),
    text_width=24, max_text_tokens=16, word_buckets=64, time_stride=2,
)  # fmt: skip
_TEXT = "five words of a caption"


def _counted(work, model):
    """Return (products with weights, attention) that torch counts."""
    # The math back end shows attention as batched products; linear layers are mm and addmm.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work(model)
    counts = counter.get_flop_counts()["Global"]
    batched = {op: n for op, n in counts.items() if "bmm" in str(op)}
    return sum(counts.values()) - sum(batched.values()), sum(batched.values())


def _forward(cfg, num_frames, batch):
    def work(model):
        layout = model.layout(num_frames)
        features = torch.randn(batch, layout.offsets[-1], cfg.num_bits)
        return model(features, model.encode_text([_TEXT] * batch), layout)

    return work


@pytest.mark.parametrize("cfg", [PRESETS["tiny"], _ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("batch", [1, 3])
def test_weights_are_counted_exactly_and_attention_by_what_is_visible(cfg, batch):
    torch.manual_seed(0)
    model, num_frames = VideoAR(cfg), 1 + 2 * cfg.time_stride
    scheme = cfg.scheme_for(num_frames)
    tokens = sum(block.num_tokens for block in scheme.blocks) + len(_TEXT.split())
    lengths = [len(_TEXT.split())] * batch
    run = _forward(cfg, num_frames, batch)

    matrices, attention = _counted(run, model)
    flops = forward_flops(cfg, scheme, lengths)
    assert flops.matrices == matrices
    dense = 4 * cfg.depth * cfg.width * batch * tokens**2
    assert attention == dense
    assert flops.attention * tokens**2 == dense * attention_pairs(scheme, len(_TEXT.split()))

    matrices, attention = _counted(lambda model: run(model).sum().backward(), model)
    trained = training_flops(cfg, scheme, lengths)
    assert trained.matrices == matrices
    assert attention == 3 * dense
    assert trained.attention == 3 * flops.attention


def test_pairs_are_those_of_the_mask():
    cfg = _ODD.model_copy(update={"history": "last_scale", "window": 1})
    model = VideoAR(cfg)
    layout = model.layout(1 + 3 * cfg.time_stride)
    from videoar.model.transformer.attention import Visibility

    text = model.encode_text([_TEXT]).mask_BP
    mask = Visibility.of(layout, text, None).dense(0, text.shape[1] + layout.offsets[-1])
    assert attention_pairs(layout.scheme, text.shape[1]) == int(mask.sum())
    assert attention_cells(layout.scheme) < int(mask.sum())


def test_products_with_weights_of_sampling_are_those_of_one_sequence_per_copy():
    model = VideoAR(_ODD).eval()
    num_frames = 1 + _ODD.time_stride
    matrices, _ = _counted(
        lambda model: sample_bits(
            model, [_TEXT] * 2, num_frames, [0, 1], settings=SamplerSettings("ucf")
        ),
        model,
    )
    flops = forward_flops(_ODD, _ODD.scheme_for(num_frames), [len(_TEXT.split())] * 2)
    assert 2 * flops.matrices == matrices


def test_ragged_rows_are_counted_without_padding():
    cfg, scheme = _ODD, _ODD.scheme_for(3)
    both, *parts = (forward_flops(cfg, scheme, lengths) for lengths in ([2, 9], [2], [9]))
    assert both.matrices == sum(part.matrices for part in parts)
    assert both.attention == sum(part.attention for part in parts)


def test_peak_is_known_by_name_and_none_for_other_cards():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") is None
    assert peak_flops("NVIDIA GeForce RTX 4090") is None
