"""Round trips through a tokenizer: what of a clip is left when it has been tokens.

The one idea: whatever is measured here has been exactly what the token store keeps. Latents are
rounded to fp16, bits derive from the rounded ones, pixels from the bits. Clips of any length pass
in parts, so memory does not grow with them.

Axes: N clips, T frames, H W pixels, C colour channels; K bits, S scales.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videoar.core.errors import ContractError, GateError
from videoar.evaluation.frechet import frechet_of_vectors
from videoar.evaluation.i3d import I3D
from videoar.evaluation.measure import Clip, features_ND, why_no_distance
from videoar.evaluation.metrics import psnr_T, ssim_T
from videoar.model.tokenizer.network import VideoTokenizer, frames_from_video, video_from_frames
from videoar.storage.token_codec import pack_bits, unpack_bits

Frames = NDArray[np.uint8]
_CHUNK_PIXELS = 1 << 21  # chosen: 128 frames of 128 x 128 px at a time, 8 of 384 x 672 px


def fitted(net: VideoTokenizer, num_frames: int, height_px: int, width_px: int) -> VideoTokenizer:
    """Return a network for clips of some shape; those for all sizes share their weights.

    Raises:
        ContractError: the shape does not fit.
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
    """Refuse NaN and what fp16 cannot hold: a NaN has bits, and its pixel would be black.

    Cost: one pass over the values. On a CPU core with the presets `tiny` to `small`, latents take
    0.6 to 0.01 % of encoding, pixels 3 to 0.05 % of decoding.

    Raises:
        ContractError: some value is not finite; names the clip.
    """
    if not values.isfinite().all():
        hint = "the tokenizer's weights are broken or its numbers too large: train it again"
        raise ContractError(clip, f"{what} are not finite", hint)


@torch.inference_mode()
def round_trip(
    net: VideoTokenizer, frames_THWC: Frames, clip: str = "clip"
) -> tuple[Frames, list[Tensor]]:
    """Return a clip of any size after its round trip, and its bits: per scale bool [1, T, h, w, K].

    Args:
        net: tokenizer.
        frames_THWC: the clip.
        clip: names it in errors.

    Raises:
        ContractError: the clip does not fit the tokenizer, its latents or pixels are not finite, or
            the bits do not rebuild what the stored latents are quantized to.
    """
    net = fitted(net, *frames_THWC.shape[:3])
    bits: list[list[Tensor]] = []
    frames = _shown(net, _rebuilt(net, _stored(net, frames_THWC, clip), bits), clip)
    return frames, [torch.cat(parts, dim=1) for parts in zip(*bits, strict=True)]


def _stored(net: VideoTokenizer, frames_THWC: Frames, clip: str) -> Iterator[Tensor]:
    """Yield the latents that the token store keeps: finite, fp16."""
    for latent_BKTHW in net.encode_chunks(_chunks(net, frames_THWC)):
        stored = latent_BKTHW.half()
        require_finite(stored, "latents", clip)
        yield stored


def _rebuilt(
    net: VideoTokenizer, latents: Iterable[Tensor], bits: list[list[Tensor]]
) -> Iterator[Tensor]:
    """Yield the latents that the token store gives back; append their bits."""
    cfg, quantizer = net.cfg, net.quantizer
    for stored in latents:
        pyramid = quantizer.pyramid(stored.cpu())  # where `tokenize` takes them, too
        packed = pack_bits([of_scale[0].numpy() for of_scale in pyramid.bits])
        unpacked = unpack_bits(packed, stored.shape[2], cfg.scales, cfg.num_bits)
        read = [torch.from_numpy(part)[None].bool() for part in unpacked]
        rebuilt_BKTHW = quantizer.decode(read)
        if not torch.equal(rebuilt_BKTHW.transpose(1, 2), pyramid.accumulated[-1]):
            raise ContractError("tokens", "bits and stored latents decode to different latents")
        bits.append(read)
        yield rebuilt_BKTHW.to(stored.device)


def _chunks(net: VideoTokenizer, frames_THWC: Frames) -> Iterator[Tensor]:
    device = next(net.parameters()).device
    frames, height_px, width_px, _ = frames_THWC.shape
    stride = net.cfg.time_stride
    step = stride * max(1, _CHUNK_PIXELS // (height_px * width_px * stride))
    ends = [*range(1 + step, frames, step), frames]
    for begin, end in zip([0, *ends], ends, strict=False):
        part = torch.tensor(frames_THWC[begin:end])
        yield video_from_frames(part[None].to(device))


def _shown(net: VideoTokenizer, latents: Iterable[Tensor], clip: str) -> Frames:
    """Return the frames [T, H, W, 3] that the parts of a clip's latents decode to."""
    frames = []
    for part_B3THW in net.decode_chunks(latents):
        require_finite(part_B3THW, "reconstructed pixels", clip)
        frames.append(frames_from_video(part_B3THW)[0].cpu())
    return torch.cat(frames).numpy()


@torch.inference_mode()
def after_each_scale(
    net: VideoTokenizer, frames_THWC: Frames, clip: str = "clip"
) -> Iterator[Frames]:
    """Yield a clip of any length as the first 1, 2, ... all scales of its tokens show it.

    One of them is held at a time. See `round_trip` for the rest.

    Raises:
        ContractError: the clip does not fit the tokenizer, its latents or pixels are not finite.
    """
    net = fitted(net, *frames_THWC.shape[:3])
    device, decode = next(net.parameters()).device, net.quantizer.decode
    parts = [net.quantizer.encode(stored.cpu()) for stored in _stored(net, frames_THWC, clip)]
    for end in range(1, len(net.cfg.scales) + 1):
        yield _shown(net, (decode(bits[:end]).to(device) for bits in parts), clip)


class BitUsage:
    """How much of what the bits could say they say, scale by scale.

    Clips of several sizes count together, scale k of all of them as one scale.
    """

    def __init__(self) -> None:
        self._ones: list[NDArray[np.float64]] = []
        self._positions: list[int] = []
        self._frames = 0

    def add(self, bits: Sequence[Tensor]) -> None:
        """Count the bits of some clips of one size: per scale bool [N, T, h, w, K]."""
        self._frames += bits[0].shape[0] * bits[0].shape[1]
        for scale, of_scale in enumerate(bits):
            if scale == len(self._ones):
                self._ones.append(np.zeros(of_scale.shape[-1]))
                self._positions.append(0)
            flat = of_scale.flatten(0, 3)
            self._ones[scale] += flat.sum(0).double().cpu().numpy()
            self._positions[scale] += len(flat)

    def metrics(self) -> dict[str, float]:
        """Return each scale's entropy, in bits per bit: 1 if all are even, 0 if all are stuck.

        Entropies are those of each bit by itself, so per frame they are what a coder that knows no
        neighbours would need, and the capacity is what is stored.
        """
        found, entropy, capacity = {}, 0.0, 0.0
        for scale, (ones, positions) in enumerate(
            zip(self._ones, self._positions, strict=True), start=1
        ):
            size = positions / self._frames
            per_bit = _binary_entropy(ones / positions)
            entropy += float(per_bit.sum()) * size
            capacity += len(ones) * size
            found[f"scale_{scale}/bit_entropy"] = float(per_bit.mean())
        per_frame = {"entropy/bits_per_frame": entropy, "capacity/bits_per_frame": capacity}
        return found | per_frame


def _binary_entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-(q * np.log2(q) + (1 - q) * np.log2(1 - q)))


class Validation:
    """Measures a tokenizer in training on clips that it is not trained on.

    Args:
        clips: what to measure on.
        networks: feature networks by the name of their distance; their features of the real clips
            are taken once. See `evaluation.i3d` for what may be called FVD.

    Raises:
        GateError: clips are too few or too short for a distance.
    """

    def __init__(self, clips: Iterable[Frames], networks: Mapping[str, I3D]) -> None:
        self._clips = list(clips)
        self._networks = networks
        if networks and (why := why_no_distance([[len(frames) for frames in self._clips]])):
            raise GateError("train_tokenizer", f"no distance on the val clips: {why}")
        self._real = {
            name: features_ND(net, _as_clips(self._clips)) for name, net in networks.items()
        }

    def measure(self, net: VideoTokenizer) -> dict[str, float]:
        """Return mean PSNR (dB) and SSIM, the use of bits and the distances, N in their names."""
        if not self._clips:
            return {}
        usage, made = BitUsage(), []
        for i, frames_THWC in enumerate(self._clips):
            rebuilt_THWC, bits = round_trip(net, frames_THWC, f"val clip {i}")
            made.append(rebuilt_THWC)
            usage.add(bits)
        pairs = list(zip(self._clips, made, strict=True))
        distances = {
            f"{name}_n{len(made)}": frechet_of_vectors(
                self._real[name], features_ND(network, _as_clips(made))
            )
            for name, network in self._networks.items()
        }
        return {
            "psnr_db": float(np.mean([psnr_T(real, other).mean() for real, other in pairs])),
            "ssim": float(np.mean([ssim_T(real, other).mean() for real, other in pairs])),
            **usage.metrics(),
            **distances,
        }


def _as_clips(clips: Iterable[Frames]) -> Iterator[Clip]:
    return (Clip(id="", frames=frames, rate_fps=1.0, text="") for frames in clips)


def require_round_trip(
    net: VideoTokenizer,
    clips: Iterable[Frames],
    min_psnr_db: float,
    where: str,
    names: Iterable[str] | None = None,
) -> float:
    """Gate a tokenizer before anything is built on its tokens; return the mean PSNR in dB.

    Args:
        net: to be judged.
        clips: a sample of what it is for.
        min_psnr_db: lowest mean PSNR.
        where: named in the error.
        names: those of the clips in errors, by default their numbers.

    Raises:
        GateError: the PSNR is lower, or there is no clip to tell.
        ContractError: see `round_trip`.
    """
    values = [
        float(psnr_T(frames, round_trip(net, frames, name)[0]).mean())
        for frames, name in zip(clips, names or map("clip {}".format, count()), strict=False)
    ]
    if not values:
        raise GateError(where, "there is no clip to test the tokenizer on")
    psnr_db = float(np.mean(values))
    if not psnr_db >= min_psnr_db:
        what = f"reconstructions have {psnr_db:.2f} dB, {min_psnr_db:g} dB are asked for"
        raise GateError(where, what, "train the tokenizer longer, or give it more bits")
    return psnr_db
