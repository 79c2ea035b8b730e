"""Start a video tokenizer from the weights of an image tokenizer: ours, or one of Infinity's.

The one idea: a causal 3D kernel that is zero but for its last slice in time does to every frame
what the 2D kernel in that slice does to an image.

Source: arXiv 2601.05966 appendix A; names of layers FoundationVision/Infinity.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from videoar.core.errors import ConfigError
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.tokenizer.network import VideoTokenizer


@torch.no_grad()
def inflate(
    tokenizer: VideoTokenizer,
    image_weights: Mapping[str, Tensor],
    *,
    rest: Literal["zeros", "random"] = "zeros",
    fresh: Sequence[str] = (),
) -> None:
    """Load an image tokenizer's weights: each 2D kernel becomes the last slice in time.

    With `rest="zeros"` an image, and every frame of a static video, is treated exactly as the image
    tokenizer treats it. The paper leaves the other slices random (`rest="random"`).

    Args:
        tokenizer: changed in place.
        image_weights: state dict of a `VideoTokenizer` with `cfg.as_image()`; kernels may also be
            plain 2D [out, in, h, w]. See `load_image_weights`.
        rest: initial value of the earlier slices.
        fresh: prefixes of weights that keep their random start, e.g. because the number of bits
            differs (`encoder.conv_out`, `decoder.conv_in`).

    Raises:
        ValueError: a weight is missing or has another shape.
    Source: arXiv 2601.05966 appendix A.
    """
    for name, weight in tokenizer.named_parameters():
        if name.startswith(tuple(fresh)):
            continue
        image = image_weights.get(name)
        if image is None:
            raise ValueError(f"the image tokenizer has no {name}; list it in `fresh`")
        last = weight[:, :, -1] if weight.ndim == 5 else weight
        image = image.squeeze(2) if image.ndim == 5 else image
        if image.shape != last.shape:
            raise ValueError(f"{name} is {tuple(image.shape)}, not {tuple(last.shape)}")
        if weight.ndim == 5 and weight.shape[2] > 1:
            earlier = weight[:, :, :-1]
            earlier.zero_() if rest == "zeros" else nn.init.kaiming_uniform_(earlier, a=5**0.5)
        last.copy_(image)


def load_image_weights(path: Path, cfg: TokenizerConfig) -> dict[str, Tensor]:
    """Read the weights that `inflate` takes: a safetensors file with our names or Infinity's.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    hint = "weights are read as .safetensors; convert a pickled .pth first"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(str(path), f"holds no image tokenizer: {error}", hint) from error
    unwrapped = {_WRAPPERS.sub(r"\1", name): weight for name, weight in weights.items()}
    of_infinity = [n for n in unwrapped if n.startswith(("encoder.down.", "decoder.up."))]
    if not of_infinity:
        return weights
    if attention := sorted(name for name in unwrapped if ".attn" in name):
        raise ConfigError(str(path), f"has attention ({attention[0]}), this network has none")
    if not cfg.infinity_layout:
        hint = "set infinity_layout: true"
        raise ConfigError(str(path), f"has the layer names of Infinity ({of_infinity[0]})", hint)
    our_layer = dict(_layer_names(cfg))
    result = {}
    for name, weight in unwrapped.items():
        layer, _, rest = name.replace(".nin_shortcut.", ".shortcut.").rpartition(".")
        # A layer is a convolution or norm itself (`encoder.conv_in`) or a block that contains them
        # (`encoder.mid.block_1.conv1`).
        for prefix in (layer, layer.rpartition(".")[0]):
            if prefix in our_layer:
                result[f"{our_layer[prefix]}{layer[len(prefix) :]}.{rest}"] = weight
    return result


_WRAPPERS = re.compile(r"(?:\.conv|\.norm)+(\.(?:weight|bias))$")
"""Infinity wraps each convolution and norm in a module of its own; its relatives do not."""


def _layer_names(cfg: TokenizerConfig) -> Iterator[tuple[str, str]]:
    """Yield Infinity's and our name of each layer, in the order of our `layers`."""
    resampled = {*cfg.space_downs, *cfg.time_downs}
    levels = range(len(cfg.multipliers))
    mid = ["mid.block_1", "mid.block_2"]
    down, up = [], list(mid)
    for level in levels:
        down += [f"down.{level}.block.{block}" for block in range(cfg.num_res_blocks)]
        down += [f"down.{level}.downsample"] * (level in resampled)
    for level in reversed(levels):
        # Infinity numbers an upsampling by the level below it, we by the level it leads to.
        up += [f"up.{level + 1}.upsample"] * (level in resampled)
        up += [f"up.{level}.block.{block}" for block in range(cfg.num_res_blocks + 1)]
    for half, layers in (("encoder", [*down, *mid]), ("decoder", up)):
        for name in ("conv_in", "norm_out", "conv_out"):
            yield f"{half}.{name}", f"{half}.{name}"
        for number, name in enumerate(layers):
            is_resampling = name.endswith("sample")
            yield f"{half}.{name}", f"{half}.layers.{number}" + ".conv" * is_resampling
