"""Pretrained networks from a local folder: a captioner and an image encoder.

The one idea: the Auto classes of transformers read the architecture from the folder, so any
vision-language model and any image encoder works. A clip is passed as a few stills: all of these
models take images, only some take videos, each with a sampling of its own.

Shape suffixes: N clips, T stills of a clip, H W height and width, C = 3 channels, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from videoar.model.device import device
from videoar.model.pretrained.lite0 import load_lite0, preprocess
from videoar.model.pretrained.loading import SAFE, load_network, loading
from videoar.model.pretrained.model_folder import LITE0

if TYPE_CHECKING:
    from transformers import BatchFeature, ProcessorMixin

_PIL = "pil"  # chosen: pixels then do not depend on whether torchvision is installed
_PATTERN = (np.arange(64 * 64 * 3).astype(np.uint8).reshape(1, 64, 64, 3),)
"""A first clip: a model that cannot work fails while loading, not in the middle of a shard."""


def pick_stills(frames_THWC: np.ndarray, num_frames: int) -> np.ndarray:
    """Return the middle frames of `num_frames` equal parts; all frames of a shorter clip.

    Source: the sampling of temporal segment networks at test time, arXiv 1608.00859.
    """
    num = min(num_frames, len(frames_THWC))
    return frames_THWC[((np.arange(num) + 0.5) * len(frames_THWC) / num).astype(int)]


class Captioner:
    """A vision-language model that describes a clip in words, deterministically (greedy).

    A chat model gets all stills in one message; another one (BLIP, GIT) gets the middle still and
    completes the prompt.

    Raises:
        ConfigError: the folder holds no vision-language model, or transformers is not installed.
    """

    def __init__(self, folder: str, prompt: str, max_new_tokens: int) -> None:
        self._prompt, self._max_new_tokens = prompt, max_new_tokens
        with loading(folder, "a vision-language model"):
            from transformers import AutoModelForImageTextToText

            self._processor = _processor(folder)
            self._net = load_network(AutoModelForImageTextToText, folder, "auto")
            tokenizer = self._processor.tokenizer
            # Decoder-only models continue the last token, so the prompt must not end in padding.
            tokenizer.padding_side = "left"
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            self._generate(_PATTERN, 1)

    def __call__(self, clips: Sequence[np.ndarray]) -> list[str]:
        """Return one line of text per clip.

        Args:
            clips: stills_THWC of each, uint8 RGB; sizes may differ.
        """
        return self._generate(clips, self._max_new_tokens)

    @torch.inference_mode()
    def _generate(self, clips: Sequence[np.ndarray], max_new_tokens: int) -> list[str]:
        is_chat = getattr(self._processor, "chat_template", None) is not None
        inputs = self._chat_inputs(clips) if is_chat else self._prompt_inputs(clips)
        inputs = inputs.to(self._net.device, self._net.dtype)
        tokens = self._net.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens
        )
        prompt = inputs["input_ids"]
        if torch.equal(
            tokens[:, : prompt.shape[1]], prompt
        ):  # decoder-only: the prompt comes first
            tokens = tokens[:, prompt.shape[1] :]
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _chat_inputs(self, clips: Sequence[np.ndarray]) -> "BatchFeature":
        question = {"type": "text", "text": self._prompt}
        per_clip = [[{"type": "image", "image": still} for still in stills] for stills in clips]
        return self._processor.apply_chat_template(
            [[{"role": "user", "content": [*images, question]}] for images in per_clip],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _prompt_inputs(self, clips: Sequence[np.ndarray]) -> "BatchFeature":
        images = [stills[len(stills) // 2] for stills in clips]
        text = [self._prompt] * len(images)
        return self._processor(images=images, text=text, padding=True, return_tensors="pt")


class ImageEncoder:
    """A vision model that embeds a clip as one unit vector: the mean over its stills.

    Raises:
        ConfigError: the folder holds no such model, or transformers is not installed.
    """

    def __init__(self, folder: str) -> None:
        with loading(folder, "an image encoder such as CLIP, SigLIP or DINOv2"):
            from transformers import AutoImageProcessor, AutoModel

            self._processor = AutoImageProcessor.from_pretrained(folder, backend=_PIL, **SAFE)
            self._net = load_network(AutoModel, folder, torch.float32)
            if not np.allclose(self(_PATTERN), self(_PATTERN), atol=1e-3):
                raise ValueError(
                    "returns different vectors for equal images, like a model that masks its input"
                )

    @torch.inference_mode()
    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Return vectors_ND, float32.

        Vectors are normalised before the mean, so that each still has the same weight.
        Source: `_mean_pooling_for_similarity_visual` of CLIP4Clip (arXiv 2104.08860).

        Args:
            clips: stills_THWC of each, uint8 RGB; sizes may differ.
        """
        stills = [still for clip in clips for still in clip]
        inputs = self._processor(images=stills, return_tensors="pt").to(self._net.device)
        unit = F.normalize(self._vectors(inputs), dim=-1)
        means = torch.stack([part.mean(0) for part in unit.split([len(clip) for clip in clips])])
        vectors_ND: np.ndarray = F.normalize(means, dim=-1).cpu().numpy()
        return vectors_ND

    def _vectors(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return one vector per image: in the joint space with text, else pooled, else the mean."""
        output = getattr(self._net, "get_image_features", self._net)(**inputs)
        pooled = output if torch.is_tensor(output) else getattr(output, "pooler_output", None)
        vectors = output.last_hidden_state.mean(1) if pooled is None else pooled
        if not torch.is_tensor(vectors) or vectors.ndim != 2:
            raise TypeError(f"{type(self._net).__name__} does not return one vector per image")
        return vectors


class Lite0Encoder:
    """EfficientNet-Lite0 as an encoder of clips: needs no folder, nor transformers."""

    def __init__(self) -> None:
        self._net = load_lite0().to(device())

    @torch.inference_mode()
    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Return vectors_ND, float32, D = 320: see `ImageEncoder`.

        Args:
            clips: stills_THWC of each, uint8 RGB; sizes may differ.
        """
        # clip by clip: sizes may differ, and a vector does not depend on the batch
        stills = (preprocess(torch.tensor(clip).to(device())) for clip in clips)
        means = [F.normalize(self._net.features(images), dim=-1).mean(0) for images in stills]
        vectors_ND: np.ndarray = F.normalize(torch.stack(means), dim=-1).cpu().numpy()
        return vectors_ND


def load_encoder(model: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Return the encoder of a folder, or EfficientNet-Lite0.

    Raises:
        ConfigError: see `ImageEncoder`.
    """
    return Lite0Encoder() if model == LITE0 else ImageEncoder(model)


def _processor(folder: str) -> "ProcessorMixin":
    """Load a processor without its video processor: not needed, and it requires torchvision."""
    from transformers import (
        PROCESSOR_MAPPING,
        AutoConfig,
        AutoImageProcessor,
        AutoProcessor,
        AutoTokenizer,
    )

    config = type(AutoConfig.from_pretrained(folder, **SAFE))
    kind = PROCESSOR_MAPPING.get(config, AutoProcessor)
    if kind is AutoProcessor or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(folder, backend=_PIL, **SAFE)
    parts = {
        "tokenizer": AutoTokenizer.from_pretrained(folder, **SAFE),
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend=_PIL, **SAFE),
        "video_processor": None,
    }
    unchecked = {"check_argument_for_proper_class": lambda *_: None}  # the check rejects None
    images_only: Any = type(kind.__name__, (kind,), unchecked)
    options, _ = kind.get_processor_dict(folder, **SAFE)
    return images_only.from_args_and_dict([parts[name] for name in kind.get_attributes()], options)
