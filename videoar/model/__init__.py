"""VideoAR in pure torch: tokenizer, transformer, sampler. Readable next to arXiv 2601.05966.

Names are loaded on first use, so that code that must stay light can import the torch-free modules
(`schedule`, `tokenizer.config`, `transformer.config`, `transformer.schemes`).
"""

from importlib import import_module
from typing import TYPE_CHECKING

# For type checkers; at run time `__getattr__` resolves the same names.
if TYPE_CHECKING:
    from videoar.model.tokenizer.config import TokenizerConfig
    from videoar.model.tokenizer.network import VideoTokenizer
    from videoar.model.tokenizer.quantizer import MultiScaleBSQ
    from videoar.model.transformer.config import PRESETS, ModelConfig
    from videoar.model.transformer.network import VideoAR
    from videoar.model.transformer.sampling import sample

__all__ = [
    "PRESETS",
    "ModelConfig",
    "MultiScaleBSQ",
    "TokenizerConfig",
    "VideoAR",
    "VideoTokenizer",
    "sample",
]

_MODULES = {
    "PRESETS": "transformer.config",
    "ModelConfig": "transformer.config",
    "MultiScaleBSQ": "tokenizer.quantizer",
    "TokenizerConfig": "tokenizer.config",
    "VideoAR": "transformer.network",
    "VideoTokenizer": "tokenizer.network",
    "sample": "transformer.sampling",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
