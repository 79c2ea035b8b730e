"""Masks as tiles, padded text, compiled layers, checkpointing, and decoding without a mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from videoar.model.schedule import scale_schedule
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import Visibility, compile_scheme, random_frame_mask
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR, teacher_forcing_inputs
from videoar.model.transformer.sampling import SamplerSettings, sample_bits
from videoar.model.transformer.schemes import NextFrameNextScale
from videoar.model.transformer.text import Text
from videoar.model.transformer.tiles import TILE, classify, tile_mask

# Warnings of torch about its own doing: FlexAttention on a CPU, dynamo reading gradients.
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
CPU = torch.device("cpu")
TINY = PRESETS["tiny"].model_copy(update={"scales": ((1, 1), (2, 2), (3, 3))})
PROMPTS = ["a red circle moving left", "blue square"]
SHAPES = [
    (5, (8, 8)),
    (9, (8, 8)),
    (9, (4, 6)),
    (1, (12, 12)),
    (5, (5, 3)),
    (13, (3, 3)),
    (1, (8, 8)),
    (17, (8, 8)),
]
"""Frames and latent grids."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def by_tile(mask_QL):
    """Return the number of visible pairs of every tile, of a mask padded with hidden ones."""
    more = -len(mask_QL) % TILE
    padded = torch.nn.functional.pad(mask_QL.int(), (0, more, 0, more))
    size = len(padded) // TILE
    return padded.view(size, TILE, size, TILE).sum(dim=(1, 3))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(1, 5),
    grid=st.sampled_from([(3, 5), (8, 8), (14, 8), (16, 16)]),
    history=st.sampled_from(["full", "last_scale"]),
    window=st.sampled_from([None, 1, 2]),
    prefix=st.sampled_from([1, 8, 100, 128, 200]),
    hides_frames=st.booleans(),
)
def test_tiles_are_those_of_the_dense_mask(frames, grid, history, window, prefix, hides_frames):
    scheme = NextFrameNextScale(frames, scale_schedule(*grid), history, window)
    layout = compile_scheme(scheme, CPU)
    length = prefix + layout.offsets[-1]
    text = torch.ones(2, prefix, dtype=torch.bool)
    keep = random_frame_mask(torch.arange(2), frames, 0.5) if hides_frames else None
    most, least = (Visibility.of(layout, mask, keep) for mask in (text, ~text))
    shared = classify(layout, prefix, most.keep_BTT)
    partial, full = (each.expand(2, -1, -1) for each in shared)
    for b in range(2):
        of_most, of_least = (by_tile(each.dense(0, length)[b, 0]) for each in (most, least))
        assert torch.equal((partial | full)[b], of_most > 0)
        assert torch.equal(full[b], of_least == TILE**2)
    assert not (partial & full).any()
    mask = tile_mask(layout, most)
    assert torch.equal(mask.to_dense()[:, 0].bool(), shared[0] | shared[1])
    assert mask.seq_lengths == (length, length)


def test_wide_videos_have_full_and_skipped_tiles():
    layout = compile_scheme(PRESETS["4B"].scheme_for(33), CPU)
    text = torch.ones(2, 16, dtype=torch.bool)
    shared = classify(layout, 16, None)
    assert shared[1].float().mean() > 0.45
    assert shared[0].float().mean() < 0.05
    assert not (shared[0] | shared[1])[0].triu(diagonal=20).any()
    shares = []
    for p_mask in (0.0, 0.5):
        keep = random_frame_mask(torch.arange(2), 9, p_mask)
        own = classify(layout, 16, Visibility.of(layout, text, keep).keep_BTT)
        shares.append([each.float().mean() for each in own])
        if not p_mask:
            assert all(torch.equal(a, b[:1]) for a, b in zip(shared, own, strict=True))
    assert shares[1][1] < 0.8 * shares[0][1]
    assert shares[1][0] < 0.05


def test_masks_look_up_no_negative_index():
    # Kernels of FlexAttention do not wrap them, as indexing does elsewhere: they read other memory.
    layout = compile_scheme(TINY.scheme_for(5), CPU)
    keep = random_frame_mask(torch.arange(2), layout.num_frames, 0.5)
    visibility = Visibility.of(layout, torch.ones(2, 3, dtype=torch.bool), keep)
    for index, table in (
        (visibility.block_L, visibility.table),
        (visibility.frame_L, visibility.keep_BTT[0]),
    ):
        assert 0 <= int(index.min()) <= int(index.max()) == len(table) - 1


@pytest.mark.parametrize("hides_frames", [False, True])
def test_invariant_16_flex_attention_equals_dense_attention(hides_frames):
    model = VideoAR(PRESETS["tiny"]).eval()
    layout, features = model.layout(9), torch.randn(2, 390, 8)
    keep = random_frame_mask(torch.arange(2), 3, 0.5) if hides_frames else None
    logits = []
    for model.attention in ("dense", "flex"):
        with torch.no_grad():
            logits.append(model(features, model.encode_text(PROMPTS), layout, keep_BTT=keep))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)


def test_padded_text_gives_the_same_logits():
    model = VideoAR(TINY).double().eval()
    text, features = model.encode_text(PROMPTS), torch.randn(2, 28, 8)
    padded = text.padded()
    assert padded.mask_BP.shape == (2, 8)
    assert padded.lengths.tolist() == [5, 2]
    assert [Text(torch.zeros(1, n, 1), torch.ones(1, n)).padded().mask_BP.shape[1] for n in (
        1, 8, 9, 16, 77)] == [8, 8, 16, 16, 128]  # fmt: skip
    with torch.no_grad():
        both = [model(features, each, model.layout(5)) for each in (text, padded)]
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-12)


class Waits(TorchDispatchMode):
    """Record operators that would wait for a GPU: their results have a size, or are a number, that
    only the device knows."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        indices = args[1] if "index" in op.__name__ and len(args) > 1 else ()
        by_mask = isinstance(indices, list) and any(
            index is not None and index.dtype == torch.bool for index in indices
        )
        if by_mask or any(name in op.__name__ for name in self.WAITING):
            self.found.append(op.__name__)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_no_operator_of_a_training_step_waits_for_the_device(kind):
    model = VideoAR(PRESETS["tiny"])
    model.checkpointing = kind
    keep = random_frame_mask(torch.arange(2), 3, 0.5)
    text = model.text_encoder(PROMPTS)  # its places of words are found on the CPU
    model.text_encoder.forward = lambda _: text
    scored(model, 9, (8, 8), 2, keep)  # fills the caches of layouts
    with Waits() as waits:
        scored(model, 9, (8, 8), 2, keep).square().sum().backward()
    assert waits.found == []
    layout = model.layout(9)
    tile_mask(layout, Visibility.of(layout, text.mask_BP, keep))
    with Waits() as waits:
        tile_mask(layout, Visibility.of(layout, text.mask_BP, keep))
    assert waits.found == []
    with Waits() as waits:
        text.mask_BP.nonzero()
        text.features_BPD[text.mask_BP]
    assert len(waits.found) == 2


class Graphs:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, _inputs):
        self.count += 1
        return graph.forward


@pytest.fixture
def compiled():
    """Return a model with compiled layers, the same one without, and the counted graphs."""
    model, plain, graphs = VideoAR(PRESETS["tiny"]), VideoAR(PRESETS["tiny"]), Graphs()
    plain.load_state_dict(model.state_dict())
    model.compile_layers(graphs)
    yield model, plain, graphs
    torch._dynamo.reset()


def scored(model, num_frames, grid, batch, keep=None):
    scales = scale_schedule(*grid)
    layout = model.layout(num_frames, scales)
    draw = torch.Generator().manual_seed(0)
    latent = torch.randn(batch, 8, layout.num_frames, *grid, generator=draw)
    inputs = teacher_forcing_inputs(
        layout.scheme, MultiScaleBSQ(8, scales).pyramid(latent).accumulated
    )
    prompts = ["word " * (1 + 6 * row) for row in range(batch)]
    return model(inputs, model.encode_text(prompts), layout, keep_BTT=keep)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shapes"), [("none", 8), ("selective", 2), ("full", 2)])
def test_training_steps_of_many_shapes_compile_to_few_graphs_without_a_break(
    compiled, kind, shapes
):
    model, plain, graphs = compiled
    model.checkpointing = kind
    for num_frames, grid in SHAPES[:shapes]:
        for batch in (2, 3):
            results = []
            for net in (model, plain):
                net.zero_grad()
                logits = scored(net, num_frames, grid, batch)
                logits.square().sum().backward()
                results.append([logits, *(w.grad for w in net.parameters() if w.grad is not None)])
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert 1 <= graphs.count <= 4
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_tiles_of_many_shapes_compile_to_few_graphs(compiled):
    model, plain, graphs = compiled
    model.attention = "flex"
    model.eval()
    plain.eval()
    for num_frames, grid in SHAPES:
        keep = random_frame_mask(torch.arange(2), 1 + num_frames // 4, 0.5)
        with torch.no_grad():
            both = [scored(net, num_frames, grid, 2, keep) for net in (model, plain)]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
    assert 1 <= graphs.count <= 6


@pytest.mark.slow
def test_decoding_compiles_to_few_graphs_without_a_break(compiled):
    model, plain, graphs = compiled
    for prompts in (PROMPTS, PROMPTS[:1], ["a b", "c d", "e f"]):
        for frames in (1, 5):
            both = [
                sample_bits(net.eval(), prompts, frames, range(len(prompts)))
                for net in (model, plain)
            ]
            assert all(map(torch.equal, *(each.bits for each in both)))
    assert 1 <= graphs.count <= 10


@pytest.mark.parametrize("history", ["full", "last_scale"])
def test_decoding_masks_only_what_is_hidden(monkeypatch, history):
    model = VideoAR(TINY.model_copy(update={"history": history, "window": None})).double().eval()
    model.head.weight.data.mul_(50)
    greedy = SamplerSettings(guidance=1.0, greedy=True)
    slow = SamplerSettings(guidance=1.0, greedy=True, cached=False)
    wanted = sample_bits(model, PROMPTS[:1], 9, [0], settings=slow)
    calls = []
    dense = Visibility.dense
    monkeypatch.setattr(Visibility, "dense", lambda *args: calls.append(args) or dense(*args))
    found = sample_bits(model, PROMPTS[:1], 9, [0], settings=greedy)
    assert all(map(torch.equal, found.bits, wanted.bits))
    assert len(calls) == 1  # the first pass has the text, which sees no video
    calls.clear()
    sample_bits(model, PROMPTS, 9, [0, 0], settings=greedy)  # the shorter prompt is padded
    assert len(calls) == 9
