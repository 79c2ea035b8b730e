"""The tokenizer's contract with time: causal, chunked as a whole, an image is a video of one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file

from tests.support.infinity_reference import InfinityReference
from videoar.core.errors import ConfigError
from videoar.model.schedule import scale_schedule
from videoar.model.tokenizer.config import TOKENIZERS, TokenizerConfig
from videoar.model.tokenizer.inflation import inflate, load_image_weights
from videoar.model.tokenizer.network import (
    VideoTokenizer,
    _fold,
    _unfold,
    frames_from_video,
    video_from_frames,
)

torch.set_num_threads(1)

# as the paper's network, only narrower and shallower: 3 x 3 x 3 kernels, no patches
FULL = TokenizerConfig(
    num_bits=6,
    scales=((1, 1), (2, 2)),
    base_width=8,
    multipliers=(1, 2, 2),
    num_res_blocks=1,
    space_downs=(0, 1),
    time_downs=(0, 1),
    norm_groups=4,
)
TINY = TOKENIZERS["tiny"]
INFINITY = FULL.model_copy(update={"infinity_layout": True, "num_res_blocks": 2})
CONFIGS = pytest.mark.parametrize("cfg", [FULL, TINY, INFINITY], ids=["full", "tiny", "infinity"])


def make(cfg, seed=0):
    torch.manual_seed(seed)
    net = VideoTokenizer(cfg).double().eval()
    for weight in net.parameters():
        if weight.ndim == 5:  # a new network does not look back; this one does
            torch.nn.init.kaiming_uniform_(weight, a=5**0.5)
    return net


def video(cfg, frames, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, frames, *cfg.size_px, generator=generator, dtype=torch.float64) * 2 - 1


@CONFIGS
@torch.no_grad()
def test_latents_and_bits_have_the_shapes_of_the_config(cfg):
    net, clip = make(cfg), video(cfg, 17)
    latent = net.encode(clip)
    assert latent.shape == (2, cfg.num_bits, 5, *cfg.scales[-1])
    bits = net.tokenize(clip)
    assert [tuple(b.shape) for b in bits] == [(2, 5, *s, cfg.num_bits) for s in cfg.scales]
    assert net.double().decode(net.quantizer.decode(bits).double()).shape == clip.shape
    with pytest.raises(ValueError, match="1 \\+ a multiple of 4"):
        net.encode(clip[:, :, :16])
    with pytest.raises(ValueError, match="does not fit"):
        net.encode(clip[..., :-1])


@CONFIGS
def test_network_for_another_size_shares_its_weights(cfg):
    net, stride = make(cfg), cfg.space_stride
    assert net.for_size(*cfg.size_px) is net
    wide = net.for_size(3 * stride, 5 * stride)
    assert net.cfg == cfg
    assert (wide.cfg.scales[-1], wide.quantizer.scales) == ((3, 5), wide.cfg.scales)
    assert [id(w) for w in wide.parameters()] == [id(w) for w in net.parameters()]
    assert wide.training == net.training
    alone = VideoTokenizer(wide.cfg).double()
    alone.load_state_dict(net.state_dict())
    clip = video(wide.cfg, 5)
    for mine, other in zip(wide.tokenize(clip), alone.tokenize(clip), strict=True):
        assert torch.equal(mine, other)
    wide.decode(wide.encode(clip)).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    with pytest.raises(ValueError, match="multiple of"):
        net.for_size(3 * stride, 5 * stride + 1)


@CONFIGS
@torch.no_grad()
def test_invariant_10_prefix_of_a_video_has_the_latents_of_the_whole(cfg):
    net, clip = make(cfg), video(cfg, 17)
    whole, decoded = net.encode(clip), net.decode(net.encode(clip))
    for m in range(4):
        torch.testing.assert_close(net.encode(clip[:, :, : 1 + 4 * m]), whole[:, :, : 1 + m])
        torch.testing.assert_close(net.decode(whole[:, :, : 1 + m]), decoded[:, :, : 1 + 4 * m])


@CONFIGS
@torch.no_grad()
def test_invariant_10_chunks_give_the_latents_and_frames_of_the_whole(cfg):
    net, clip = make(cfg), video(cfg, 17)
    encode_carry, decode_carry = {}, {}
    latent = net.encode(clip)
    for chunks, latent_chunks in (((1, 4, 12), (1, 1, 3)), ((9, 8), (3, 2))):
        encode_carry, decode_carry = {}, {}
        parts = [net.encode(part, encode_carry) for part in clip.split(chunks, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), latent)
        parts = [net.decode(part, decode_carry) for part in latent.split(latent_chunks, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), net.decode(latent))
    with pytest.raises(ValueError, match="multiple"):
        net.encode(clip[:, :, :5], encode_carry)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.sampled_from([FULL, TINY]))
@torch.no_grad()
def test_chunks_of_any_sizes_give_the_latents_of_the_whole(sizes, cfg):
    net = make(cfg)
    lengths = [1 + 4 * (sizes[0] - 1), *(4 * m for m in sizes[1:])]
    clip = video(cfg, sum(lengths))
    latent = net.encode(clip)
    parts = list(net.encode_chunks(clip.split(lengths, dim=2)))
    assert [part.shape[2] for part in parts] == sizes
    torch.testing.assert_close(torch.cat(parts, dim=2), latent)
    decoded = net.decode_chunks(latent.split(sizes, dim=2))
    torch.testing.assert_close(torch.cat(list(decoded), dim=2), net.decode(latent))


@CONFIGS
@torch.no_grad()
def test_long_videos_are_decoded_from_bits_in_parts(cfg):
    net = make(cfg).float()
    bits = net.tokenize(video(cfg, 29).float())
    whole, sizes = net.decode(net.quantizer.decode(bits)), []
    hook = net.decoder.register_forward_pre_hook(
        lambda _, args: sizes.append((len(args[0]), args[0].shape[2]))
    )
    frame_px = cfg.size_px[0] * cfg.size_px[1]
    torch.testing.assert_close(net.detokenize(bits, 15 * frame_px), whole)
    assert sizes == [(1, 3)] * 4 + [(1, 2)] * 2  # one sample at a time
    sizes.clear()
    assert torch.equal(net.detokenize(bits), whole)  # at once: it is short
    torch.testing.assert_close(net.detokenize(bits, 1), whole)
    torch.testing.assert_close(net.detokenize(bits, 64 * frame_px), whole)
    assert sizes == [(2, 8)] + [(1, 1)] * 16 + [(2, 8)]
    hook.remove()


@CONFIGS
@torch.no_grad()
def test_carry_of_a_stream_does_not_grow_with_its_length(cfg):
    net, carry, held = make(cfg), {}, []
    for length in (1, 4, 4, 8, 40):
        net.decode(net.encode(video(cfg, length), carry), carry)
        held.append(sum(kept.untyped_storage().nbytes() for kept in carry.values()))
    assert len(set(held[1:])) == 1


@CONFIGS
@torch.no_grad()
def test_invariant_10_pixel_frame_first_changes_its_own_latent_frame(cfg):
    net, clip = make(cfg), video(cfg, 17)
    latent = net.encode(clip)
    for frame in range(17):
        other = clip.clone()
        other[:, :, frame] *= -1
        changed = (net.encode(other) != latent).flatten(3).any(3).any(1)[0]
        assert int(changed.nonzero()[0]) == -(-frame // 4)


@torch.no_grad()
def test_invariant_10_inflated_tokenizer_encodes_static_videos_as_the_image_tokenizer():
    image_net, net = make(FULL.as_image(), seed=3), make(FULL, seed=4)
    inflate(net, image_net.state_dict())
    still = video(FULL, 1).expand(-1, -1, 9, -1, -1)
    image_latent = image_net.encode(still[:, :, :1])
    torch.testing.assert_close(net.encode(still[:, :, :1]), image_latent)
    torch.testing.assert_close(net.encode(still), image_latent.expand(-1, -1, 3, -1, -1))
    rebuilt = image_net.decode(image_latent).expand(-1, -1, 9, -1, -1)
    torch.testing.assert_close(net.decode(image_latent.expand(-1, -1, 3, -1, -1)), rebuilt)


@torch.no_grad()
def test_inflation_with_random_rest_and_fresh_layers():
    image_net, net = make(FULL.as_image(), seed=3), make(FULL, seed=4)
    flat = {name: w.squeeze(2) if w.ndim == 5 else w for name, w in image_net.state_dict().items()}
    fresh = net.encoder.conv_out.weight.clone()
    inflate(net, flat, rest="random", fresh=["encoder.conv_out"])
    name = "encoder.conv_in.weight"
    assert torch.equal(net.encoder.conv_in.weight[:, :, -1], flat[name])
    assert net.encoder.conv_in.weight[:, :, :-1].abs().min() > 0
    assert torch.equal(net.encoder.conv_out.weight, fresh)
    del flat[name]
    with pytest.raises(ValueError, match=r"no encoder\.conv_in\.weight"):
        inflate(net, flat)
    with pytest.raises(ValueError, match="not"):
        inflate(net, {**flat, name: torch.zeros(1, 1, 1, 1)})


@torch.no_grad()
def test_image_tokenizer_is_loaded_from_safetensors(tmp_path):
    image_net, net = make(FULL.as_image(), seed=3), make(FULL, seed=4)
    flat = {name: w.squeeze(2) if w.ndim == 5 else w for name, w in image_net.state_dict().items()}
    save_file(flat, tmp_path / "image.safetensors")
    inflate(net, load_image_weights(tmp_path / "image.safetensors", net.cfg))
    image = video(FULL, 1)
    torch.testing.assert_close(net.decode(net.encode(image)),
                               image_net.decode(image_net.encode(image)))  # fmt: skip
    (tmp_path / "other.pt").write_bytes(b"PK")
    for name in ("other.pt", "none.safetensors"):
        with pytest.raises(ConfigError, match="no image tokenizer"):
            load_image_weights(tmp_path / name, FULL)


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_of_infinity_give_the_output_of_its_network(tmp_path, wrapped):
    theirs = InfinityReference(INFINITY, wrapped=wrapped)
    save_file(theirs.weights, tmp_path / "vae.safetensors")
    net = make(INFINITY)
    inflate(net, load_image_weights(tmp_path / "vae.safetensors", INFINITY))
    still = video(INFINITY, 1).expand(-1, -1, 5, -1, -1)
    latent, pixels = theirs.encode(still[:, :, 0]), theirs.decode(theirs.encode(still[:, :, 0]))
    torch.testing.assert_close(net.encode(still), latent[:, :, None].expand(-1, -1, 2, -1, -1))
    found = net.decode(net.encode(still))
    torch.testing.assert_close(found, pixels[:, :, None].expand(-1, -1, 5, -1, -1))


def test_weights_of_networks_that_do_not_fit_are_rejected(tmp_path):
    theirs, path = InfinityReference(INFINITY, wrapped=False), tmp_path / "vae.safetensors"
    save_file(theirs.weights, path)
    with pytest.raises(ConfigError, match="infinity_layout"):
        load_image_weights(path, FULL)
    save_file({**theirs.weights, "encoder.mid.attn_1.q.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="attention"):
        load_image_weights(path, INFINITY)


@torch.no_grad()
def test_new_network_encodes_every_frame_as_an_image():
    torch.manual_seed(0)
    net, clip = VideoTokenizer(FULL).double(), video(FULL, 5)
    torch.testing.assert_close(net.encode(clip)[:, :, 1:], net.encode(clip[:, :, 4:]))


def test_folding_and_conversion_to_bytes_are_inverted_exactly():
    frames = torch.randint(0, 256, (2, 5, 8, 12, 3), dtype=torch.uint8)
    clip = video_from_frames(frames)
    assert clip.shape == (2, 3, 5, 8, 12)
    assert torch.equal(_unfold(_fold(clip, 4), 4), clip)
    assert torch.equal(frames_from_video(clip), frames)
    assert int(frames_from_video(clip * 3).min()) == 0


def test_gradients_pass_the_quantizer_to_every_weight():
    torch.manual_seed(0)
    net = VideoTokenizer(FULL)
    clip = video(FULL, 5).float()
    quantized = net.quantizer(net.encode(clip))
    (net.decode(quantized.latent_BKTHW) - clip).abs().mean().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    assert net.encoder.conv_in.weight.grad.abs().sum() > 0


def test_presets_of_the_paper_have_its_shapes():
    ucf, large = TOKENIZERS["ucf"], TOKENIZERS["512"]
    assert (ucf.size_px, ucf.space_stride, ucf.time_stride) == ((128, 128), 16, 4)
    assert ucf.num_latent_frames(17) == 5
    assert (large.size_px, len(large.scales), large.num_latent_frames(33)) == ((384, 672), 10, 9)
    small = TOKENIZERS["small"]
    assert (small.size_px, small.scales, small.time_stride) == ((64, 64), ucf.scales, 4)
    with torch.device("meta"):
        net = VideoTokenizer(small)
        assert net.encode(torch.empty(1, 3, 5, 64, 64)).shape == (1, 16, 2, 8, 8)
        net = VideoTokenizer(ucf)
        assert net.encode(torch.empty(1, 3, 5, 128, 128)).shape == (1, 48, 2, 8, 8)


def test_impossible_configs_are_rejected():
    with pytest.raises(ValueError, match="time only"):
        TINY.as_image()
    too_large = ({"num_res_blocks": 10**6}, {"base_width": 10**6}, {"scales": ((1, 10**6),)})
    for wrong in ({"norm_groups": 24}, {"space_downs": (4,)}, {"scales": ()}, *too_large):
        with pytest.raises(ValidationError):
            TokenizerConfig(**wrong)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (((1, 1), (8, 8), (4, 4)), r"\(4, 4\) is smaller than \(8, 8\)"),
        (((1, 1), (8, 1), (4, 4)), r"\(4, 4\) is smaller than \(8, 1\)"),
        (((4, 4), (2, 2), (1, 1)), r"\(2, 2\) is smaller than \(4, 4\)"),
        (((0, 1), (4, 4)), r"\(0, 1\) has a side below 1"),
        (((-2, -2), (4, 4)), r"\(-2, -2\) has a side below 1"),
    ],
)
def test_invalid_scales_are_named(scales, message):
    with pytest.raises(ValidationError, match=rf"scales\n.*scale {message}"):
        TokenizerConfig(scales=scales)


def test_schedule_of_every_grid_is_valid():
    for h, w in itertools.product(range(1, 49), repeat=2):
        assert TokenizerConfig(scales=scale_schedule(h, w)).scales[-1] == (h, w)
