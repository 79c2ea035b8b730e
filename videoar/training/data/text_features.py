"""Features of all prompts of a training, computed once per distinct prompt and kept in the store.

    text/<digest of the encoder>/<max tokens>/<sha256>.safetensors
        one tensor per prompt, named by the prompt's digest: float16 [P, D], not padded

Each rank encodes the prompts whose digest falls to it and writes files of `_FILE_PROMPTS` of them,
named by their content, so nothing half-written is visible and two runs do not disturb each other.
A later run of the same encoder finds them and loads no encoder.

Memory: the place of each prompt's features, some 300 bytes, and `_CACHE_BYTES` of features.

B batch, P text tokens, D text width.
"""

import itertools
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from videoar.core.errors import DamagedError, StorageError
from videoar.core.ids import sha256_hex
from videoar.model.device import device
from videoar.model.pretrained.text_encoder import load_text_encoder
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.text import Text, TextEncoder
from videoar.storage.layout import text_features_key, text_features_prefix
from videoar.storage.object_store import ObjectInfo, ObjectStore, put_content
from videoar.storage.store import Store
from videoar.training.collectives import all_reduce_sum

_FILE_PROMPTS = 64  # chosen: one batch of the encoder; 128 MiB if all have 512 tokens of width 2048
_CACHE_BYTES = 1 << 30  # chosen: all prompts of a labelled data set, a few thousand long captions
_REQUESTS = 16  # chosen: a batch from a remote store in a few round trips
_HEADER_BYTES = 1 << 16  # chosen: more than the header of a file of 64 prompts
_AGAIN = "delete it: the next run computes it again"


class _Place(NamedTuple):
    """Where the features of a prompt are."""

    key: str
    start: int
    tokens: int


class TextFeatures:
    """Stored features of known prompts, as a text encoder that computes nothing.

    Args:
        objects: where the features are.
        cfg: names the encoder, D and the maximum of P.
        prompts: those that will be looked up.
    """

    def __init__(self, objects: ObjectStore, cfg: ModelConfig, prompts: Iterable[str]) -> None:
        self.width, self.digest, self._objects = cfg.text_width, cfg.text_encoder, objects
        self._prefix = text_features_prefix(cfg.text_encoder, cfg.max_text_tokens)
        self._missing = {_digest(prompt): prompt for prompt in prompts}
        self._places: dict[str, _Place] = {}
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = 0
        self.refresh()

    @property
    def missing(self) -> list[str]:
        """Prompts without features, in a fixed order."""
        return sorted(self._missing.values())

    def refresh(self) -> None:
        """Find the features that were stored in the meantime.

        Raises:
            DamagedError: a file has no valid header.
        """
        if not self._missing:
            return
        for info in self._objects.list(self._prefix):
            for name, place in _places(self._objects, info, self.width).items():
                if (prompt := self._missing.pop(name, None)) is not None:
                    self._places[prompt] = place

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Return the features of prompts, float16 on the CPU; those of padding are 0.

        Raises:
            StorageError: a prompt has no features, or a file of them is missing.
        """
        absent = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        for prompt, row in zip(absent, self._read_all(absent), strict=True):
            self._cache[prompt] = row
            self._cached_bytes += row.nbytes
        features = [self._cache[prompt] for prompt in prompts]
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        while self._cached_bytes > _CACHE_BYTES:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        lengths = torch.tensor([len(row) for row in features])
        mask_BP = torch.arange(int(lengths.max())) < lengths[:, None]
        return Text(pad_sequence(features, batch_first=True), mask_BP)

    def _read_all(self, prompts: Sequence[str]) -> Iterator[Tensor]:
        if self._objects.is_local:
            yield from map(self._read, prompts)
        else:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                yield from pool.map(self._read, prompts)

    def _read(self, prompt: str) -> Tensor:
        place = self._places.get(prompt)
        if place is None:
            raise StorageError(self._prefix, f"no features of the prompt {prompt[:60]!r}")
        row = np.empty((place.tokens, self.width), np.float16)
        self._objects.read_into(place.key, [(place.start, row.data.cast("B"))])
        return torch.from_numpy(row)


def prepare_text_features(
    store: Store, cfg: ModelConfig, folder: str, prompts: Iterable[str], rank: int, world_size: int
) -> TextFeatures:
    """Return the features of prompts; compute those that are not stored. All ranks take part.

    Args:
        store: where features are kept.
        cfg: of the model.
        folder: of its text encoder, which is loaded if features are missing.
        prompts: the same on all ranks.
        rank: which share to compute.
        world_size: number of shares.

    Raises:
        ConfigError: the folder cannot be loaded, or holds another encoder than `cfg` names.
        StorageError: features are missing although all ranks have stored theirs.
    """
    features = TextFeatures(store.objects, cfg, prompts)
    # By digest, not by number among the missing ones: ranks look at different times, and other
    # runs may store features in between.
    own = [p for p in features.missing if int(_digest(p), 16) % world_size == rank]
    encoder = load_text_encoder(cfg, folder) if own else None
    if encoder is not None:
        _store_features(store, cfg, encoder, own)
    all_reduce_sum(torch.zeros(1, device=device()))  # wait until all ranks have stored theirs
    features.refresh()
    if missing := features.missing:
        what = f"features of {len(missing)} prompts are missing, e.g. {missing[0][:60]!r}"
        raise StorageError(text_features_prefix(cfg.text_encoder, cfg.max_text_tokens), what)
    return features


def _store_features(
    store: Store, cfg: ModelConfig, encoder: TextEncoder, prompts: Sequence[str]
) -> None:
    store.ledger.prepare_write()
    by_length = iter(sorted(prompts, key=len))  # little padding
    while batch := list(itertools.islice(by_length, _FILE_PROMPTS)):
        text = encoder(batch)
        rows = zip(batch, text.features_BPD.half().cpu(), text.lengths.tolist(), strict=True)
        tensors = {_digest(prompt): row[:length].contiguous() for prompt, row, length in rows}
        data = save(tensors)
        key = text_features_key(cfg.text_encoder, cfg.max_text_tokens, sha256_hex(data))
        put_content(store.objects, key, data)


def _places(objects: ObjectStore, info: ObjectInfo, width: int) -> dict[str, _Place]:
    """Return where the features of the prompts of a file are, by digest of the prompt."""
    try:
        return _parse_header(objects, info, width)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(f"{objects.url}/{info.key}", f"damaged: {error}", _AGAIN) from error


def _parse_header(objects: ObjectStore, info: ObjectInfo, width: int) -> dict[str, _Place]:
    # 8 bytes with the length of the JSON header, the header, the tensors.
    # Source: https://huggingface.co/docs/safetensors
    head = objects.get_range(info.key, 0, _HEADER_BYTES)
    start = 8 + int.from_bytes(head[:8], "little")
    if start > info.size_bytes:
        raise ValueError("its header ends after the file")
    if start > len(head):
        head = objects.get_range(info.key, 0, start)
    places, stop = {}, start
    for name, entry in json.loads(head[8:start]).items():
        tokens, found_width = entry["shape"]
        if (entry["dtype"], found_width) != ("F16", width):
            raise ValueError(f"{name} is {entry}, not float16 of width {width}")
        places[name] = _Place(info.key, start + entry["data_offsets"][0], tokens)
        stop = max(stop, start + entry["data_offsets"][1])
    if stop != info.size_bytes:
        raise ValueError("its size is not that of its tensors")
    return places


def _digest(prompt: str) -> str:
    return sha256_hex(prompt.encode())
