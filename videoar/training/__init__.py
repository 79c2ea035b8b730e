"""Training loops in pure torch: what they do to a model, not where they run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videoar.training.data.token_loader import TokenLoader

__all__ = ["TokenLoader"]


def __getattr__(name: str) -> object:
    """Load a name on first use: stages import `videoar.training.config` and must stay light."""
    if name != "TokenLoader":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from videoar.training.data.token_loader import TokenLoader

    return TokenLoader
