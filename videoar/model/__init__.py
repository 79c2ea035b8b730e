"""VideoAR in pure torch: tokenizer, transformer, sampler. Readable next to arXiv 2601.05966.

Names are loaded on first use, so that code that must stay light can import the torch-free modules
(`schedule`, `tokenizer.config`, `transformer.config`, `transformer.schemes`).
"""

from typing import TYPE_CHECKING

from videoar.core.lazy import lazy_names

if TYPE_CHECKING:
    from videoar.model.tokenizer.config import TokenizerConfig as TokenizerConfig
    from videoar.model.tokenizer.network import VideoTokenizer as VideoTokenizer
    from videoar.model.tokenizer.quantizer import MultiScaleBSQ as MultiScaleBSQ
    from videoar.model.transformer.config import PRESETS as PRESETS
    from videoar.model.transformer.config import ModelConfig as ModelConfig
    from videoar.model.transformer.network import VideoAR as VideoAR
    from videoar.model.transformer.sampling import sample as sample

__getattr__ = lazy_names(
    __name__,
    {
        "PRESETS": "videoar.model.transformer.config:PRESETS",
        "ModelConfig": "videoar.model.transformer.config:ModelConfig",
        "MultiScaleBSQ": "videoar.model.tokenizer.quantizer:MultiScaleBSQ",
        "TokenizerConfig": "videoar.model.tokenizer.config:TokenizerConfig",
        "VideoAR": "videoar.model.transformer.network:VideoAR",
        "VideoTokenizer": "videoar.model.tokenizer.network:VideoTokenizer",
        "sample": "videoar.model.transformer.sampling:sample",
    },
)
