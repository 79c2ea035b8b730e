"""Batches of tokens in an order that is a pure function of (snapshot digest, seed, epoch).

The order is a keyed permutation of rows, cut into global batches of one shape each. A rank takes
its slice of every global batch, so any world size sees the same batches, every row exactly once per
epoch; the last batch of a shape may be short. The state is a few scalars, because the position in
the epoch is all there is to know. Reading the next batch overlaps with the work on this one.

Shapes: B batch (of this rank), T latent frames, K bits, H W latent grid.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from videoar.core.errors import ConfigError, StorageError
from videoar.core.ids import seed_from
from videoar.storage.reader import PayloadReader
from videoar.storage.tables import Snapshot
from videoar.storage.token_codec import checksum

Batch = dict[str, Any]
_META = ["clip_id", "label", "caption", "t", "h", "w", "k", "latent_xxh3"]


class TokenLoader:
    """One rank's share of the global batches of a `tokens@1` snapshot; iterating runs one epoch.

    Args:
        snapshot: the token store.
        batch_size: rows of a global batch.
        seed: of the order.
        rank: which slice of every global batch to take.
        world_size: number of slices; divides `batch_size`.
        split: `train` or `val` keeps these rows alone, empty keeps all.
        verify: check every value read against its xxh3.

    Raises:
        ConfigError: the sizes do not fit, no row is left, or several tokenizers made the rows.
    """

    def __init__(  # noqa: PLR0913 - the public signature; both options are keyword-only
        self,
        snapshot: Snapshot,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        split: str = "train",
        verify: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            what = f"batch_size {batch_size} is not a multiple of world_size {world_size}"
            raise ConfigError("batch_size", what)
        self._snapshot, self._batch_size, self._seed = snapshot, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._verify = verify
        self._meta, self._place_N2 = _read_meta(snapshot, split)
        self._readers = [PayloadReader(snapshot.objects, file) for file in snapshot.files]
        self._epoch = self._step = 0
        makers = sorted({reader.notes.get("tokenizer_digest", "") for reader in self._readers})
        if len(makers) > 1:
            raise ConfigError(snapshot.id, f"tokens of {len(makers)} tokenizers: {makers}")
        if not len(self._meta):
            raise ConfigError(snapshot.id, f"no rows in split {split!r}")

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self._meta)

    def __len__(self) -> int:
        """Return the batches of one epoch."""
        return len(self._order())

    def state_dict(self) -> dict[str, int | str]:
        """Return the position after the batch that was yielded last."""
        return {**self._identity(), "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where a state was taken, at whatever world size.

        Raises:
            ConfigError: the state is of another snapshot, seed or batch size.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                what = f"the state has {name} {state[name]}, this loader {value}"
                raise ConfigError("loader state", what)
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def _identity(self) -> dict[str, int | str]:
        return {
            "digest": self._snapshot.digest,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "num_rows": self.num_rows,
        }

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch, then stand at the start of the next one."""
        order = self._order()
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            while self._step < len(order):
                batch = (ahead or pool.submit(self._load, order[self._step])).result()
                self._step += 1
                more = self._step < len(order)
                ahead = pool.submit(self._load, order[self._step]) if more else None
                yield batch
        self._epoch, self._step = self._epoch + 1, 0

    def _order(self) -> list[np.ndarray]:
        """Cut the permuted rows of every shape into global batches, and permute the batches."""
        key = seed_from(self._snapshot.digest, self._seed, self._epoch)
        random = np.random.Generator(np.random.Philox(key=key))
        shape_N4 = np.stack([self._meta[name].to_numpy() for name in "thwk"], axis=1)
        _, bucket_N = np.unique(shape_N4, axis=0, return_inverse=True)
        batches: list[np.ndarray] = []
        for bucket in range(int(bucket_N.max()) + 1):
            rows = random.permutation(np.flatnonzero(bucket_N == bucket))
            batches += np.split(rows, range(self._batch_size, len(rows), self._batch_size))
        return [batches[i] for i in random.permutation(len(batches))]

    def _load(self, global_rows: np.ndarray) -> Batch:
        """Read this rank's slice of a global batch; at a short one, slices differ by one row."""
        rows = np.array_split(global_rows, self._world_size)[self._rank]
        meta = self._meta.take(pa.array(rows))
        first = self._meta.slice(int(global_rows[0]), 1)
        shape = tuple(int(first[name][0].as_py()) for name in "tkhw")
        values_BN = self._read("latent", rows, meta)
        latent = torch.from_numpy(values_BN.view("<f2").astype(np.float32))
        return {
            "latent_BKTHW": latent.reshape(len(rows), *shape).transpose(1, 2).contiguous(),
            "captions": [caption or "" for caption in meta["caption"].to_pylist()],
            "labels": meta["label"].to_pylist(),
            "clip_ids": meta["clip_id"].to_pylist(),
            "global_size": len(global_rows),
        }

    def _read(self, column: str, rows: np.ndarray, meta: pa.Table) -> np.ndarray:
        file_B, row_B = self._place_N2[rows].T
        values: np.ndarray | None = None
        for file in np.unique(file_B):
            mine = np.flatnonzero(file_B == file)
            part = self._readers[file].read_rows(column, row_B[mine])
            if values is None:
                values = np.empty((len(rows), part.shape[1]), np.uint8)
            values[mine] = part
        values = np.empty((0, 0), np.uint8) if values is None else values
        if self._verify:
            self._check(column, values, meta)
        return values

    def _check(self, column: str, values: np.ndarray, meta: pa.Table) -> None:
        for clip, stored, value in zip(
            meta["clip_id"].to_pylist(), meta[f"{column}_xxh3"].to_pylist(), values, strict=True
        ):
            if checksum(value.data) != stored:
                raise StorageError(f"{self._snapshot.id}/{clip}", f"{column} fails its checksum")


def _read_meta(snapshot: Snapshot, split: str) -> tuple[pa.Table, np.ndarray]:
    """Read the small columns of all kept rows, and where each row is: [N, 2] of (file, row)."""
    tables, places = [], [np.empty((0, 2), np.int64)]
    for index, table in enumerate(snapshot.read([*_META, "split"])):
        splits = np.array(table["split"].to_pylist(), dtype=object)
        rows = np.flatnonzero(splits == split) if split else np.arange(len(table))
        tables.append(table.select(_META).take(pa.array(rows)))
        places.append(np.stack([np.full_like(rows, index), rows], axis=1))
    meta = pa.concat_tables(tables) if tables else snapshot.table(_META)
    return meta.combine_chunks(), np.concatenate(places)
