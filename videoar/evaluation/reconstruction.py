"""Reconstruction quality of a tokenizer: encode, store, decode, compare.

Measured is exactly what the token store holds: latents are rounded to fp16, bits are quantized
from the rounded latents, pixels are decoded from the bits. Clips are processed in chunks of frames,
so memory does not grow with their length.

Axes: N clips, T frames, H W pixels, C colour channels; K bits, S scales.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videoar.core.errors import ContractError, GateError
from videoar.evaluation.extractor import Clip, Extractor
from videoar.evaluation.frechet import frechet_of_vectors
from videoar.evaluation.metrics import psnr_T, ssim_T
from videoar.model.tokenizer.network import (
    CHUNK_PIXELS,
    VideoTokenizer,
    frames_from_video,
    video_from_frames,
)
from videoar.storage.token_codec import pack_bits, unpack_bits

Frames = NDArray[np.uint8]


def for_clip_shape(
    net: VideoTokenizer, num_frames: int, height_px: int, width_px: int
) -> VideoTokenizer:
    """Return the network configured for clips of one shape; all sizes share the same weights.

    Raises:
        ContractError: frames or pixels are no multiple of what the network reduces them by.
    """
    try:
        sized = net.for_size(height_px, width_px)
        sized.cfg.num_latent_frames(num_frames)
    except ValueError as error:
        where = f"clips of {num_frames}x{height_px}x{width_px}"
        hint = "change size_px or num_frames where clips are made"
        raise ContractError(where, f"do not fit the tokenizer: {error}", hint) from error
    return sized


def require_finite(values: Tensor, what: str, clip: str) -> None:
    """Raise if values are NaN or infinite, as latents above the fp16 maximum (65,504) become.

    Without the check a NaN latent quantizes to valid bits and a NaN pixel is encoded as black.
    Cost: one pass over the values. On a CPU core with the presets `tiny` to `small`, latents take
    0.6 to 0.01 % of encoding, pixels 3 to 0.05 % of decoding.

    Raises:
        ContractError: a value is not finite; names the clip.
    """
    if not values.isfinite().all():
        hint = "the tokenizer diverged or exceeds the range of fp16: train it again"
        raise ContractError(clip, f"{what} are not finite", hint)


@torch.inference_mode()
def round_trip(
    net: VideoTokenizer,
    frames_THWC: Frames,
    clip: str = "clip",
    *,
    chunk_pixels: int = CHUNK_PIXELS,
) -> tuple[Frames, list[Tensor]]:
    """Encode and decode a clip; return its frames and its bits: per scale bool [1, T, h, w, K].

    Args:
        net: tokenizer.
        frames_THWC: RGB, uint8, of any length and size that fits.
        clip: name of the clip in errors.
        chunk_pixels: pixels to process at a time, rounded down to whole latent frames.

    Raises:
        ContractError: the clip does not fit the tokenizer, its latents or pixels are not finite, or
            the unpacked bits decode to other latents than the stored latents quantize to.
    """
    net = for_clip_shape(net, *frames_THWC.shape[:3])
    bits: list[list[Tensor]] = []
    stored = _stored_latents(net, frames_THWC, clip, chunk_pixels)
    latents = _through_store(net, stored, bits)
    frames = _decode(net, latents, clip)
    return frames, [torch.cat(parts, dim=1) for parts in zip(*bits, strict=True)]


def _stored_latents(
    net: VideoTokenizer, frames_THWC: Frames, clip: str, chunk_pixels: int
) -> Iterator[Tensor]:
    """Yield the latents of each chunk as the token store holds them: fp16, finite."""
    for latent_BKTHW in net.encode_chunks(_chunks(net, frames_THWC, chunk_pixels)):
        stored = latent_BKTHW.half()
        require_finite(stored, "latents", clip)
        yield stored


def _through_store(
    net: VideoTokenizer, latents: Iterable[Tensor], bits: list[list[Tensor]]
) -> Iterator[Tensor]:
    """Yield the latents that packed and unpacked bits decode to; append the bits of each chunk."""
    cfg, quantizer = net.cfg, net.quantizer
    for stored in latents:
        # On the CPU, as `tokenize` does: a sign near zero may differ between CPU and GPU.
        pyramid = quantizer.pyramid(stored.cpu())
        packed = pack_bits([of_scale[0].numpy() for of_scale in pyramid.bits])
        unpacked = unpack_bits(packed, stored.shape[2], cfg.scales, cfg.num_bits)
        read = [torch.from_numpy(part)[None].bool() for part in unpacked]
        rebuilt_BKTHW = quantizer.decode(read)
        if not torch.equal(rebuilt_BKTHW.transpose(1, 2), pyramid.accumulated[-1]):
            raise ContractError("tokens", "bits and stored latents decode to different latents")
        bits.append(read)
        yield rebuilt_BKTHW.to(stored.device)


def _chunks(net: VideoTokenizer, frames_THWC: Frames, chunk_pixels: int) -> Iterator[Tensor]:
    device = next(net.parameters()).device
    frames, step = len(frames_THWC), net.cfg.time_stride * net.cfg.latent_frames_in(chunk_pixels)
    # The causal encoder maps the first frame to a latent frame of its own, so the first chunk has
    # one frame more than a multiple of the stride.
    ends = [*range(1 + step, frames, step), frames]
    for begin, end in zip([0, *ends], ends, strict=False):
        part = torch.tensor(frames_THWC[begin:end])
        yield video_from_frames(part[None].to(device))


def _decode(net: VideoTokenizer, latents: Iterable[Tensor], clip: str) -> Frames:
    """Decode the chunks of a clip's latents to frames [T, H, W, 3]."""
    frames = []
    for part_B3THW in net.decode_chunks(latents):
        require_finite(part_B3THW, "reconstructed pixels", clip)
        frames.append(frames_from_video(part_B3THW)[0].cpu())
    return torch.cat(frames).numpy()


@torch.inference_mode()
def per_scale_reconstructions(
    net: VideoTokenizer,
    frames_THWC: Frames,
    clip: str = "clip",
    *,
    chunk_pixels: int = CHUNK_PIXELS,
) -> Iterator[Frames]:
    """Yield the reconstructions from the first 1, 2, ... all scales of a clip's bits.

    Frames are [T, H, W, 3], uint8; one reconstruction is in memory at a time.

    Args:
        net: tokenizer.
        frames_THWC: RGB, uint8, of any length and size that fits.
        clip: name of the clip in errors.
        chunk_pixels: pixels to process at a time, rounded down to whole latent frames.

    Raises:
        ContractError: the clip does not fit the tokenizer, its latents or pixels are not finite.
    """
    net = for_clip_shape(net, *frames_THWC.shape[:3])
    device, quantizer = next(net.parameters()).device, net.quantizer
    latents = _stored_latents(net, frames_THWC, clip, chunk_pixels)
    chunks = [quantizer.encode(stored.cpu()) for stored in latents]
    for end in range(1, len(net.cfg.scales) + 1):
        yield _decode(net, (quantizer.decode(bits[:end]).to(device) for bits in chunks), clip)


class BitUsage:
    """Streaming entropy of the bits of each scale: how much of the code is used.

    Clips of several sizes are pooled: scale k of all of them counts as one scale.
    """

    def __init__(self) -> None:
        self._ones: list[NDArray[np.float64]] = []
        self._positions: list[int] = []
        self._frames = 0

    def add(self, bits: Sequence[Tensor]) -> None:
        """Count the bits of clips of one size: per scale bool [N, T, h, w, K]."""
        self._frames += bits[0].shape[0] * bits[0].shape[1]
        for scale, of_scale in enumerate(bits):
            if scale == len(self._ones):
                self._ones.append(np.zeros(of_scale.shape[-1]))
                self._positions.append(0)
            flat = of_scale.flatten(0, 3)
            self._ones[scale] += flat.sum(0).double().cpu().numpy()
            self._positions[scale] += len(flat)

    def metrics(self) -> dict[str, float]:
        """Return the mean entropy of each scale, and the sums per frame, in bits.

        A bit that is 1 half of the time has entropy 1, a constant bit 0. Entropies are marginal
        (each of the K channels by itself), so `entropy/bits_per_frame` bounds the size of the
        independently coded bits, and `capacity/bits_per_frame` is their stored size.
        """
        result, entropy, capacity = {}, 0.0, 0.0
        for scale, (ones, positions) in enumerate(
            zip(self._ones, self._positions, strict=True), start=1
        ):
            size = positions / self._frames
            per_bit = _binary_entropy(ones / positions)
            entropy += float(per_bit.sum()) * size
            capacity += len(ones) * size
            result[f"scale_{scale}/bit_entropy"] = float(per_bit.mean())
        per_frame = {"entropy/bits_per_frame": entropy, "capacity/bits_per_frame": capacity}
        return result | per_frame


def _binary_entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    q = np.clip(p, 1e-12, 1 - 1e-12)  # 0 log 0 is 0, but NaN in floating point
    return np.asarray(-(q * np.log2(q) + (1 - q) * np.log2(1 - q)))


class Validation:
    """Validation metrics of a tokenizer in training, on clips outside its training split.

    Args:
        clips: frames [T, H, W, 3] of each validation clip.
        networks: feature network with one preset, per distance name; features of the real clips
            are computed once. `evaluation.i3d` defines which network may be called FVD.

    Raises:
        GateError: too few clips, or clips too short, for a distance.
    """

    def __init__(self, clips: Iterable[Frames], networks: Mapping[str, Extractor]) -> None:
        self._clips = list(clips)
        self._networks = networks
        if networks and len(self._clips) < 2:
            what = f"no distance on {len(self._clips)} val clips"
            raise GateError("train_tokenizer", what, "at least 2 are needed")
        self._real = {name: _vectors_ND(net, self._clips) for name, net in networks.items()}

    def measure(self, net: VideoTokenizer) -> dict[str, float]:
        """Return mean PSNR (dB) and SSIM, bit entropies, and distances with N in their names."""
        if not self._clips:
            return {}
        usage, rebuilt = BitUsage(), []
        for i, frames_THWC in enumerate(self._clips):
            rebuilt_THWC, bits = round_trip(net, frames_THWC, f"val clip {i}")
            rebuilt.append(rebuilt_THWC)
            usage.add(bits)
        pairs = list(zip(self._clips, rebuilt, strict=True))
        distances = {
            f"{name}_n{len(rebuilt)}": frechet_of_vectors(
                self._real[name], _vectors_ND(network, rebuilt)
            )
            for name, network in self._networks.items()
        }
        return {
            "psnr_db": float(np.mean([psnr_T(real, other).mean() for real, other in pairs])),
            "ssim": float(np.mean([ssim_T(real, other).mean() for real, other in pairs])),
            **usage.metrics(),
            **distances,
        }


def _vectors_ND(network: Extractor, clips: Iterable[Frames]) -> NDArray[np.float64]:
    """Return the vectors of clips.

    Raises:
        ContractError: a clip is too short.
    """
    named = (Clip(f"val clip {i}", frames, 1.0, "") for i, frames in enumerate(clips))
    return np.array([next(iter(network.vectors(clip).values())) for clip in named], np.float64)


def require_min_psnr(
    net: VideoTokenizer,
    clips: Iterable[Frames],
    min_psnr_db: float,
    where: str,
    names: Iterable[str] | None = None,
) -> float:
    """Return the mean PSNR of reconstructions in dB; raise if it is below a minimum.

    Gates a tokenizer before tokens or a transformer are computed from it.

    Args:
        net: tokenizer.
        clips: frames [T, H, W, 3] of sample clips.
        min_psnr_db: lowest mean PSNR that passes, dB.
        where: stage or file named in the error.
        names: names of the clips in errors; default: their index.

    Raises:
        GateError: the PSNR is below `min_psnr_db`, or there is no clip.
        ContractError: see `round_trip`.
    """
    values = [
        float(psnr_T(frames, round_trip(net, frames, name)[0]).mean())
        for frames, name in zip(clips, names or map("clip {}".format, count()), strict=False)
    ]
    if not values:
        raise GateError(where, "no clip to test the tokenizer on")
    psnr_db = float(np.mean(values))
    if not psnr_db >= min_psnr_db:  # `not >=`: NaN fails as well
        what = f"reconstructions have {psnr_db:.2f} dB PSNR, at least {min_psnr_db:g} dB required"
        raise GateError(where, what, "train the tokenizer longer, or use more bits")
    return psnr_db
