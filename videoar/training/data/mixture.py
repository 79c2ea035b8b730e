"""Several token stores in one stream, by weight: images and videos, or several resolutions.

    block     `BLOCK` steps; each store has its exact share of them, in an order drawn per block
    position  of a store = blocks so far x its share + its steps in this block

The position of a store follows from that of the mixture, so the mixture's state holds no states of
loaders and resuming costs one block's draw. A store begins its next epoch when its own rows have
been read. Every step is a batch of one store, as `TokenLoader` yields it, the same at any world
size.

Example: weights image 3, video 1. Of 1,000 steps 750 are images, 250 videos. After block 1 and the
first 4 steps of block 2 (image video image image) the stores continue at batch 753 and 251.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from videoar.core.errors import ConfigError
from videoar.core.ids import seed_from
from videoar.training.data.live_iterator import LiveIterator
from videoar.training.data.token_loader import Batch, TokenLoader

BLOCK = 1000
"""Chosen: shares are exact to 0.1 %, and a block's draw takes microseconds."""


class TokenMixture(LiveIterator):
    """Several loaders as one; iterating runs one block.

    Args:
        loaders: by name; names are part of a saved state.
        weights: share of the steps of each, on any positive scale.
        seed: of the order of stores.

    Raises:
        ConfigError: names differ, a weight is so small that its store would never be read, or the
            loaders differ in tokenizer or rank.
    """

    def __init__(
        self, loaders: Mapping[str, TokenLoader], weights: Mapping[str, float], seed: int
    ) -> None:
        if loaders.keys() != weights.keys():
            what = f"loaders {sorted(loaders)}, weights {sorted(weights)}"
            raise ConfigError("mixture", what)
        digests = {name: loader.tokenizer_digest for name, loader in loaders.items()}
        ranks = {name: f"{loader.rank} of {loader.world_size}" for name, loader in loaders.items()}
        _require_equal("tokenizers", digests)
        _require_equal("ranks", ranks)
        self._names = sorted(loaders)
        self._loaders, self._seed = loaders, seed
        self._quota = _quotas([weights[name] for name in self._names])
        for name, quota in zip(self._names, self._quota, strict=True):
            if not quota:
                what = f"weight {weights[name]} is less than one step in {BLOCK}"
                raise ConfigError(f"mixture.{name}", what)
        self._block = self._step = 0
        self._streams: list[Iterator[Batch]] | None = None

    def __len__(self) -> int:
        """Return the batches of one block."""
        return BLOCK

    def state_dict(self) -> dict[str, int | str]:
        """Return the position after the batch that was yielded last."""
        return {**self._identity(), "block": self._block, "step": self._step}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Continue after a position, which may have been saved at another world size.

        Raises:
            ConfigError: the state is of other stores, weights, seeds or batch sizes.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                what = f"the state has {name} {state.get(name)}, this mixture {value}"
                raise ConfigError("mixture state", what)
        self._block, self._step = int(state["block"]), int(state["step"])
        self._streams = self._newest = None

    def _identity(self) -> dict[str, int | str]:
        parts: dict[str, int | str] = {"mixture_seed": self._seed}
        for name, quota in zip(self._names, self._quota, strict=True):
            loader = self._loaders[name]
            parts[f"{name}.quota"] = quota
            parts |= {f"{name}.{key}": value for key, value in loader.identity.items()}
        return parts

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current block, then move to the start of the next one.

        Raises:
            ConfigError: as that of `TokenLoader`.
        """
        require_newest = self._begin()
        order = self._order()
        streams = self._streams or self._open_streams(order)
        for index in order[self._step :].tolist():
            # A generator that raised is exhausted: after an error the next iteration seeks and
            # opens all streams again. Without one they stay open and keep their prefetch.
            self._streams = None
            batch = next(streams[index])
            self._step, self._streams = self._step + 1, streams
            yield {**batch, "store": self._names[index]}
            require_newest()
        self._block, self._step = self._block + 1, 0

    def _open_streams(self, order: np.ndarray) -> list[Iterator[Batch]]:
        done = np.bincount(order[: self._step], minlength=len(self._names)).tolist()
        for name, quota, steps in zip(self._names, self._quota, done, strict=True):
            self._loaders[name].seek(self._block * quota + steps)
        return [self._loaders[name].endless() for name in self._names]

    def _order(self) -> np.ndarray:
        random = np.random.Generator(np.random.Philox(key=seed_from(self._seed, self._block)))
        return random.permutation(np.repeat(np.arange(len(self._names)), self._quota))


def _require_equal(what: str, by_name: Mapping[str, str]) -> None:
    if len(set(by_name.values())) > 1:
        raise ConfigError("mixture", f"loaders of several {what}: {dict(sorted(by_name.items()))}")


def _quotas(weights: list[float]) -> list[int]:
    """Divide `BLOCK` steps by largest remainder; ties go to the first name."""
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise ConfigError("mixture", f"weights {weights} are not all positive")
    exact = [BLOCK * weight / sum(weights) for weight in weights]
    quotas = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (quotas[i] - exact[i], i))
    for index in by_remainder[: BLOCK - sum(quotas)]:
        quotas[index] += 1
    return quotas
