"""The arithmetic of memory equals what a step allocates, and the stated sizes of the presets."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videoar.bench import memory
from videoar.bench.gpu.subject import CHECKPOINTING
from videoar.model.transformer.config import PRESETS, ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.text import Text


class Created(TorchDispatchMode):
    """Remembers the storages that operators create."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                ref = StorageWeakRef(tensor.untyped_storage())
                self.storages[ref.cdata] = ref, tensor.untyped_storage().nbytes()
        return result


def kept_bytes(cfg, kind, batch=2, text_tokens=4):
    """Return the bytes that live after a forward pass, and the tokens of the batch."""
    model = VideoAR(cfg).train()
    model.checkpointing = kind
    layout = model.layout(5)
    length = text_tokens + layout.offsets[-1]
    features = torch.randn(batch, text_tokens, cfg.text_width)
    text = Text(features, torch.ones(batch, text_tokens, dtype=torch.bool))
    visual = torch.randn(batch, layout.offsets[-1], cfg.num_bits)
    weights = {StorageWeakRef(w.untyped_storage()).cdata for w in model.parameters()}
    with Created() as created, torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(visual, text, layout)
    kept = [
        size
        for cdata, (ref, size) in created.storages.items()
        if cdata not in weights and not ref.expired()
    ]
    assert logits.requires_grad  # it holds the graph until here
    return sum(kept), batch * length, length


@pytest.mark.parametrize("kind", CHECKPOINTING)
@pytest.mark.parametrize(("width", "ff_width", "heads"), [(64, 192, 4), (128, 192, 2)])
def test_activations_of_a_layer_are_those_that_a_step_keeps(kind, width, ff_width, heads):
    def of_depth(depth):
        shape = {"width": width, "ff_width": ff_width, "heads": heads}
        return ModelConfig(depth=depth, num_bits=8, text_width=32, **shape)

    kept_bytes(of_depth(1), kind)  # fills caches that live longer than a step
    one, tokens, length = kept_bytes(of_depth(1), kind)
    two, *_ = kept_bytes(of_depth(2), kind)
    expected = tokens * memory.layer_bytes(of_depth(1), kind)
    if kind == "none":
        # what the arithmetic has elsewhere or leaves out: bf16 copies of the matrices, and the
        # dense mask of the CPU in bf16
        expected += 2 * width * (4 * width + 3 * ff_width) + 2 * tokens * length
    assert two - one == expected


@pytest.mark.parametrize(("name", "millions"), [("L", 912.9), ("XL", 2006), ("4B", 4001)], ids=str)
def test_parameters_are_those_of_the_design(name, millions):
    cfg = PRESETS[name]
    words = cfg.word_buckets * cfg.text_width  # the embedded text encoder is not counted there
    norms = 2 * cfg.depth * cfg.head_width
    assert memory.parameters(cfg).total - words - norms == pytest.approx(millions * 1e6, rel=1e-3)
    assert memory.parameters(cfg).layer * cfg.depth < memory.parameters(cfg).total


def test_tokens_of_the_design():
    assert memory.num_tokens(PRESETS["L"], 17) == 650
    tokens = [memory.num_tokens(PRESETS["4B"], frames) for frames in (33, 65)]
    assert tokens == [23_652, 44_676]


def test_sharded_state_falls_with_the_ranks_to_the_gathered_layers():
    cfg = PRESETS["4B"]
    whole, eight, many = (memory.state_bytes(cfg, ranks) for ranks in (1, 8, 10**12))
    assert whole == 22 * memory.parameters(cfg).total
    assert eight == 20 * memory.parameters(cfg).total // 8 + many
    count = memory.parameters(cfg)
    assert many == 6 * count.layer + 8 * (count.total - 36 * count.layer)


def test_checkpointing_keeps_less_and_adds_one_layer():
    cfg = PRESETS["L"]
    none, selective, full = (memory.activation_bytes(cfg, 100, kind) for kind in CHECKPOINTING)
    assert none > selective > full
    logits = 16 * cfg.num_bits
    per_layer = memory.layer_bytes(cfg, "none")
    assert none == 100 * (24 * per_layer + logits)
    assert full == 100 * (24 * 4 * cfg.width + per_layer + logits)


def test_tables_have_a_row_per_case():
    assert len(memory.state_table()) == 2 + len(PRESETS)
    assert len(memory.activation_table()) == 2 + len(PRESETS) + 2
    assert len(memory.sharded_table()) == 2 + 6


@pytest.mark.slow
def test_step_is_measured_in_its_own_process():
    (row,) = memory.measured_table(["tiny"], 1)[2:]
    _, clips, peak, imports, rest, computed, seconds = row.strip("| ").split(" | ")
    assert float(peak) == pytest.approx(float(imports) + float(rest), abs=0.01)
    assert float(computed) < float(peak)
    assert float(seconds) > 0
    assert clips == "1"
