"""Training loops in pure torch: what they do to a model, not where they run.

`TokenLoader` is loaded on first use: stages import `videoar.training.config` and must stay light.
"""

from typing import TYPE_CHECKING

from videoar.core.lazy import lazy_names

if TYPE_CHECKING:
    from videoar.training.data.token_loader import TokenLoader as TokenLoader

__getattr__ = lazy_names(
    __name__, {"TokenLoader": "videoar.training.data.token_loader:TokenLoader"}
)
