"""Several token stores in one stream, by weight: images and videos, or several resolutions.

    block     `BLOCK` steps; each store has its exact share of them, in an order drawn per block
    position  of a store = blocks so far x its share + its steps in this block: no store is asked
              where it was, so resuming costs one block's draw, and a heavier store begins its next
              epoch when its own rows have been seen

Every step is a batch of one store, as `TokenLoader` gives it, the same at any world size.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from videoar.core.errors import ConfigError
from videoar.core.ids import seed_from
from videoar.training.data.token_loader import Batch, TokenLoader

BLOCK = 1000


class TokenMixture:
    """Loaders as one; iterating runs one block.

    Args:
        loaders: by name; a name must stay the same for a state to be of use.
        weights: share of the steps of each, any positive scale.
        seed: of the order of stores.

    Raises:
        ConfigError: names differ, a weight is so small that its store would never be read, or the
            loaders are of several tokenizers or ranks.
    """

    def __init__(
        self, loaders: Mapping[str, TokenLoader], weights: Mapping[str, float], seed: int
    ) -> None:
        if loaders.keys() != weights.keys():
            what = f"loaders {sorted(loaders)}, weights {sorted(weights)}"
            raise ConfigError("mixture", what)
        _same("tokenizers", {name: of.tokenizer_digest for name, of in loaders.items()})
        _same("ranks", {name: f"{of.rank} of {of.world_size}" for name, of in loaders.items()})
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
        """Go on where a state was taken, at whatever world size.

        Raises:
            ConfigError: the state is of other stores, weights, seeds or batch sizes.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                what = f"the state has {name} {state.get(name)}, this mixture {value}"
                raise ConfigError("mixture state", what)
        self._block, self._step = int(state["block"]), int(state["step"])
        self._streams = None

    def _identity(self) -> dict[str, int | str]:
        parts: dict[str, int | str] = {"mixture_seed": self._seed}
        for name, quota in zip(self._names, self._quota, strict=True):
            loader = self._loaders[name]
            parts[f"{name}.quota"] = quota
            parts |= {f"{name}.{key}": value for key, value in loader.identity.items()}
        return parts

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current block, then stand at the start of the next one."""
        order = self._order()
        streams = self._streams or self._opened(order)
        for index in order[self._step :].tolist():
            self._streams = None  # a stream that fails is over: the next iteration opens it anew
            batch = next(streams[index])
            self._step, self._streams = self._step + 1, streams
            yield {**batch, "store": self._names[index]}
        self._block, self._step = self._block + 1, 0

    def _opened(self, order: np.ndarray) -> list[Iterator[Batch]]:
        done = np.bincount(order[: self._step], minlength=len(self._names)).tolist()
        for name, quota, steps in zip(self._names, self._quota, done, strict=True):
            self._loaders[name].seek(self._block * quota + steps)
        return [self._loaders[name].endless() for name in self._names]

    def _order(self) -> np.ndarray:
        random = np.random.Generator(np.random.Philox(key=seed_from(self._seed, self._block)))
        return random.permutation(np.repeat(np.arange(len(self._names)), self._quota))


def _same(what: str, by_name: Mapping[str, str]) -> None:
    if len(set(by_name.values())) > 1:
        raise ConfigError("mixture", f"loaders of several {what}: {dict(sorted(by_name.items()))}")


def _quotas(weights: list[float]) -> list[int]:
    """Share `BLOCK` steps by largest remainder."""
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise ConfigError("mixture", f"weights {weights} are not all positive")
    exact = [BLOCK * weight / sum(weights) for weight in weights]
    quotas = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (quotas[i] - exact[i], i))
    for index in by_remainder[: BLOCK - sum(quotas)]:
        quotas[index] += 1
    return quotas
