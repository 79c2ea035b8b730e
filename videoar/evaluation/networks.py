"""The extractors that are networks: EfficientNet-Lite0 and I3D.

A forward pass holds the frames of one clip: the vectors of a clip depend on no other clip, since
kernels and their order of summation vary with the batch size.

Axes: N stills, T frames, D features, K classes.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from videoar.core.settings import settings
from videoar.evaluation.extractor import NUM_WINDOWS, Clip, Vector, require_frames
from videoar.evaluation.i3d import MIN_FRAMES, load_i3d, random_i3d
from videoar.evaluation.i3d_presets import PRESETS
from videoar.model.classifier import ClipClassifier
from videoar.model.device import device
from videoar.model.pretrained.lite0 import WEIGHTS_SHA256, load_lite0, preprocess
from videoar.model.pretrained.networks import pick_stills

_FRAMES_AT_ONCE = 16  # chosen: some 200 MB of activations, however long the clip
NUM_STILLS = NUM_WINDOWS
"""Evenly spaced frames for EfficientNet-Lite0: the middle one of each window."""


class Lite0Features:
    """Extractor of the pooled features of EfficientNet-Lite0, 320 numbers a frame.

    - `mean4`: their mean over four evenly spaced frames.
    - `change4`: the mean absolute change from one of these frames to the next; the order of frames
      counts here alone.
    - `windows`: those of each of the four frames, one after the other, 1,280 numbers.
    - `consistency`: one number, see `consistency`.

    Args:
        presets: to compute.
    """

    name = "lite0"

    def __init__(self, presets: tuple[str, ...]) -> None:
        self.digest = _on_device(WEIGHTS_SHA256)
        self._network = load_lite0().to(device())
        self._presets = presets

    def vectors(self, clip: Clip) -> Mapping[str, Vector]:
        """Return the vector of each preset.

        Raises:
            ContractError: fewer than four frames.
        """
        require_frames(clip, NUM_STILLS, self.name)
        found: dict[str, Tensor] = {}
        if set(self._presets) - {"consistency"}:
            features_ND = self._features(pick_stills(clip.frames, NUM_STILLS))
            found["mean4"] = features_ND.mean(dim=0)
            found["change4"] = features_ND.diff(dim=0).abs().mean(dim=0)
            found["windows"] = features_ND.flatten()
        if "consistency" in self._presets:
            found["consistency"] = consistency(self._features(clip.frames))
        return {name: found[name].float().numpy() for name in self._presets}

    def _features(self, frames_NHWC: NDArray[np.uint8]) -> Tensor:
        """Return features_ND on the CPU, in float64."""
        # A copy, because torch has no read-only tensors and decoded frames may be read-only.
        frames = torch.tensor(frames_NHWC).split(_FRAMES_AT_ONCE)
        with torch.inference_mode(), exact_convolutions():
            parts = [self._network.features(preprocess(part.to(device()))) for part in frames]
            return torch.cat(parts).double().cpu()


def consistency(features_TD: Tensor) -> Tensor:
    """Return [1]: the mean similarity of each frame to the one before and to the first.

    Cosines below 0 count as 0. A frozen clip has 1. This is the formula of VBench's
    subject_consistency, on other features: the values of the two are not comparable.

    Source: Vchitect/VBench vbench/subject_consistency.py @45e79ec.
    """
    unit = functional.normalize(features_TD, dim=1)
    to_previous = (unit[1:] * unit[:-1]).sum(dim=1).clamp(min=0)
    to_first = (unit[1:] @ unit[0]).clamp(min=0)
    return ((to_previous + to_first) / 2).mean(dim=0, keepdim=True)


class I3DLogits:
    """Extractor of the 400 logits of I3D, by preset of preprocessing.

    Args:
        name: `i3d`, whose weights define FVD, or `random_i3d`.
        presets: of `i3d_presets.PRESETS`.
        seed: of the random weights.

    Raises:
        ConfigError: the weights of FVD are missing or other ones.
    """

    def __init__(self, name: str, presets: tuple[str, ...], seed: int) -> None:
        self.name = name
        network = load_i3d(settings().i3d_weights) if name == "i3d" else random_i3d(seed)
        self.digest = _on_device(network.digest())
        self._network = network.to(device())
        self._presets = presets

    def vectors(self, clip: Clip) -> Mapping[str, Vector]:
        """Return logits_K of each preset.

        Raises:
            ContractError: fewer than nine frames.
        """
        require_frames(clip, MIN_FRAMES, self.name)
        vectors = {}
        with torch.inference_mode(), exact_convolutions():
            for name in self._presets:
                preset = PRESETS[name]
                video = preset.preprocess(clip.frames[: preset.num_frames])
                vectors[name] = self._network(video.to(device()))[0].cpu().numpy()
        return vectors


def exact_convolutions() -> AbstractContextManager[None]:
    """Let a GPU convolve in fp32, not TF32, and the same way each time; a CPU does anyway."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


class DomainFeatures:
    """Extractor of the features of a classifier that was trained on labelled clips.

    Args:
        network: the classifier.
        digest: of its model.
    """

    name = "domain"

    def __init__(self, network: ClipClassifier, digest: str) -> None:
        self.digest = _on_device(digest)
        self._network = network.to(device())

    @torch.inference_mode()
    def vectors(self, clip: Clip) -> Mapping[str, Vector]:
        """Return features_D of the first frames of the clip."""
        frames = torch.tensor(clip.frames)[None].to(device())
        return {"penultimate": self._network.features(frames)[0].cpu().numpy()}


def _on_device(digest: str) -> str:
    """Return the digest, with the device unless it is the CPU: devices round differently."""
    return digest if device() == "cpu" else f"{digest}@{device()}"
