"""Training loops in pure torch: what they do to a model, never where they run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videoar.training.data.token_loader import TokenLoader

__all__ = ["TokenLoader"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute of any type
    if name != "TokenLoader":
        raise AttributeError(name)
    from videoar.training.data.token_loader import TokenLoader

    return TokenLoader
