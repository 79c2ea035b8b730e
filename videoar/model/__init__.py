"""VideoAR in pure torch: tokenizer, transformer, sampler. Readable next to arXiv 2601.05966.

Names are loaded on first use, so that the torch-free parts (`config`, `schedule`, `schemes`) can be
imported by code that must stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videoar.model.config import PRESETS, ModelConfig
    from videoar.model.quantizer import MultiScaleBSQ
    from videoar.model.sampling import sample
    from videoar.model.tokenizer import VideoTokenizer
    from videoar.model.tokenizer_config import TokenizerConfig
    from videoar.model.transformer import VideoAR

__all__ = [
    "PRESETS",
    "ModelConfig",
    "MultiScaleBSQ",
    "TokenizerConfig",
    "VideoAR",
    "VideoTokenizer",
    "sample",
]

_HOMES = {
    "PRESETS": "config",
    "ModelConfig": "config",
    "MultiScaleBSQ": "quantizer",
    "TokenizerConfig": "tokenizer_config",
    "VideoAR": "transformer",
    "VideoTokenizer": "tokenizer",
    "sample": "sampling",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute of any type
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
