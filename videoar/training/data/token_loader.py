"""Batches of latents in an order that is a pure function of (snapshot digest, seed, epoch).

    order     `epoch_order`: global batches of one shape each, every row exactly once
    rank      takes its slice of every global batch: the batches are the same at any world size
    reading   threads fill recycled buffers ahead of the training step; if the caller returns for
              the next batch sooner than a thread could read it, it is read in the caller's thread
    state     (digest, seed, batch size, epoch, step): there is no other state

From a local store every value is read straight into the batch (`Payload`). From a remote store,
small rows come out of whole row groups, rows of 128 KiB and more one by one (`RowGroupPrefetch`).

Memory: the small columns (captions, labels, ids) of all rows are held, about 240 bytes a row with
captions of 40 characters (280 from S3), 460 while they are read. From a remote store, open row
groups come on top: at most one per stratum of this rank and shape, plus those in flight. A store of
up to 1 GiB is permuted as a whole (see `epoch_order`), so each rank may hold all of it.

Shapes: B rows of a batch (this rank), T latent frames, K bits, H W latent grid, N rows, b shapes.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError, ContractError, DamagedError
from videoar.core.types import FileRef
from videoar.storage.layout import LAYOUT_VERSION, READABLE_LAYOUT_VERSIONS
from videoar.storage.payload import Payload, SpanCache
from videoar.storage.reader import read_footers
from videoar.storage.snapshot import Snapshot
from videoar.storage.token_codec import checksum
from videoar.training.data.buffers import BufferPool
from videoar.training.data.epoch_order import ROW_BYTES, EpochOrder, epoch_order, order_rules
from videoar.training.data.live_iterator import LiveIterator
from videoar.training.data.row_group_prefetch import NO_ACCESS, REQUESTS, RowGroupPrefetch

Batch = dict[str, Any]
_METADATA = ["clip_id", "label", "caption"]
_SHAPE = ["t", "k", "h", "w"]
REMOTE_PREFETCH_BATCHES = 4  # measured: requests of several batches keep all connections busy
METADATA_BATCHES = 32  # chosen: one `take` per so many batches; its fixed cost exceeds the rows'
_LARGE = {pa.string(): pa.large_string()}


class TokenLoader(LiveIterator):
    """One rank's share of the global batches of a `tokens@1` snapshot; iterating runs one epoch.

    A batch holds `latent_BTKHW` (float16) and `bits_BN` (uint8, packed as stored), if they are
    among the columns, `captions`, `labels`, `clip_ids`, `global_size`, the rows of the global
    batch, and `first_row`, the number of the first own row in it. The memory of a batch is reused
    once nothing refers to its tensors any more. There is one live iterator, in the process that
    trains: see `live_iterator`.

    Args:
        snapshot: the token store.
        batch_size: rows of a global batch.
        seed: of the order.
        rank: which slice of every global batch to take.
        world_size: number of slices, whose rows differ by one at most.
        split: `train` or `val` keeps only these rows, empty keeps all.
        columns: payload columns to read: `latent`, `bits` or both.
        equal_work: batches of smaller shapes hold more rows, so that a batch of any shape has about
            as many latent cells as `batch_size` rows of the largest.
        grids: keep only rows of these latent grids (height, width); empty keeps all.
        prompt_of: returns what `captions` holds of a row, given its caption and label.
        verify: check every value read against its xxh3; trainings do.
        cache: local folder that keeps what was fetched from a remote store.

    Raises:
        ConfigError: the sizes do not fit, there is no such payload column, no row is left, or the
            rows are of several tokenizers.
        ContractError: a file has an unknown layout version.
    """

    def __init__(  # noqa: PLR0913 - the public signature; all options are keyword-only
        self,
        snapshot: Snapshot,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        split: str = "train",
        columns: Sequence[str] = ("latent",),
        equal_work: bool = False,
        grids: Collection[tuple[int, int]] = (),
        prompt_of: Callable[[str | None, str | None], str] = lambda caption, _label: caption or "",
        verify: bool = False,
        cache: Path | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            what = f"{batch_size} is not positive, or there is no rank {rank} of {world_size}"
            raise ConfigError("batch_size", what)
        payloads = load_contract(snapshot.contract).payloads
        if not columns or not set(columns) <= set(payloads):
            raise ConfigError("columns", f"{list(columns)} are not among {sorted(payloads)}")
        # The snapshot's digest is over the sorted files, so rows are numbered in that order, too:
        # stores of equal content give equal batches, in whatever order their files were committed.
        files = tuple(sorted(snapshot.files, key=lambda file: file.sha256))
        if not files:
            raise ConfigError(snapshot.id, "no rows")
        self._snapshot = snapshot.with_files(files)
        self._batch_size, self._seed, self._split = batch_size, seed, split
        self.rank, self.world_size = rank, world_size
        self._prompt_of = prompt_of
        self._columns, self._equal_work = tuple(columns), equal_work
        self._is_remote = not snapshot.objects.is_local
        span_cache = SpanCache(snapshot.objects, cache) if cache and self._is_remote else None
        footers = read_footers(snapshot.objects, files)
        self._payload = Payload(snapshot.objects, files, footers, self._columns, span_cache)
        checksums = {column: f"{column}_xxh3" for column in self._columns} if verify else {}
        names = [*_METADATA, *_SHAPE, *checksums.values(), "split"]
        self._grids = sorted(grids)
        tables = self._snapshot.read(names, footers=footers)
        table, self._row_N = _select_rows(tables, split, self._grids)
        self._metadata = table.drop_columns([*_SHAPE, *checksums.values(), "split"])
        self._checksum_N = {column: table[of].to_numpy() for column, of in checksums.items()}
        _require_known_layout(files, self._payload.file_metadata)
        self.tokenizer_digest = _only_tokenizer(snapshot.id, self._payload.file_metadata)
        """Of the tokenizer that encoded the rows; empty if the files do not name it."""
        if not len(table):
            grids_text = f" of the grids {self._grids}" if grids else ""
            raise ConfigError(snapshot.id, f"no rows in split {split!r}{grids_text}")
        shape_N4 = np.stack([table[name].to_numpy() for name in _SHAPE], axis=1)
        self._shape_b4, self._bucket_N = _distinct_shapes(shape_N4)
        cells_b = self._shape_b4[:, [0, 2, 3]].prod(axis=1)
        self._batch_size_b = batch_size * (cells_b.max() // cells_b if equal_work else cells_b**0)
        self._cached_order: tuple[int, EpochOrder] | None = None
        self._buffers = BufferPool()
        self._epoch = self._step = 0
        self._read_s = 0.0
        """Seconds that reading the last batch took."""

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self._metadata)

    def __len__(self) -> int:
        """Return the batches of one epoch."""
        rows_b = np.bincount(self._bucket_N, minlength=len(self._shape_b4))
        return int((-(-rows_b // self._batch_size_b)).sum())

    @property
    def identity(self) -> dict[str, int | str]:
        """What a position is valid for."""
        return {
            "digest": self._snapshot.digest,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "equal_work": self._equal_work,
            "split": self._split,
            **({"grids": str(self._grids)} if self._grids else {}),
            "num_rows": self.num_rows,
            "order": order_rules(),
        }

    def seek(self, position: int) -> None:
        """Go to a number of batches after the start of epoch 0; iterators begun before end."""
        self._newest = None
        self._epoch, self._step = divmod(position, len(self))

    def endless(self) -> Iterator[Batch]:
        """Yield the rest of this epoch and all later ones."""
        while True:
            yield from self

    def state_dict(self) -> dict[str, int | str]:
        """Return the position after the batch that was yielded last."""
        return {**self.identity, "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Continue after a position, which may have been saved at another world size.

        Raises:
            ConfigError: the state is of another snapshot, split, seed, batch size or order, or at
                no place of an epoch.
        """
        for name, value in self.identity.items():
            if state.get(name) != value:
                what = f"the state has {name} {state.get(name)}, this loader {value}"
                raise ConfigError("loader state", what, "resume with the values it was saved with")
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step <= len(self):
            what = f"the state is at step {step} of {len(self)} in epoch {epoch}"
            raise ConfigError("loader state", what, "give one that state_dict has returned")
        self._newest = None
        self._epoch, self._step = epoch, step

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch, then move to the start of the next one.

        Raises:
            ConfigError: another iterator was begun since, or this is a worker of a `DataLoader`.
        """
        require_newest = self._begin()
        order = self._order()
        num_ahead, step_s = self._num_prefetched_batches(), 0.0
        with _threads(num_ahead) as pool, _threads(REQUESTS) as requests:
            is_over = self._step >= len(order)  # a state saved after the last batch of an epoch
            prefetch = self._prefetch(order, requests) if self._is_remote and not is_over else None
            pending: deque[tuple[Batch | Future[Batch], np.ndarray]] = deque()
            for step, metadata in enumerate(self._metadata_of_batches(order), self._step):
                while len(pending) <= num_ahead and step + len(pending) < len(order):
                    later = step + len(pending)
                    rows_B = self._rank_rows(order, later)
                    access_B = prefetch.request(rows_B) if prefetch else NO_ACCESS
                    load = partial(self._load, order, later, prefetch, access_B)
                    # A caller faster than our reads leaves a thread no time to run ahead: read here
                    # and save the hand-over, unless that would wait for the disk.
                    is_inline = self._is_cheap_to_read and step_s <= self._read_s
                    batch = load(wait=False) if is_inline else {}
                    pending.append((batch or pool.submit(load), access_B))
                loading, access_B = pending.popleft()
                batch = loading.result() if isinstance(loading, Future) else loading
                if prefetch:
                    prefetch.release(access_B)
                self._step += 1  # before the yield: `state_dict` inside the loop counts this batch
                start = time.perf_counter()
                yield batch | metadata
                require_newest()
                step_s = time.perf_counter() - start
        self._epoch, self._step = self._epoch + 1, 0

    def _order(self) -> EpochOrder:
        if self._cached_order is None or self._cached_order[0] != self._epoch:
            order = epoch_order(
                self._bucket_N,
                self._payload.row_group_N[self._row_N],
                self._payload.row_bytes_N[self._row_N],
                self._batch_size_b,
                (self._snapshot.digest, self._seed, self._epoch),
            )
            self._cached_order = (self._epoch, order)
        return self._cached_order[1]

    def _num_prefetched_batches(self) -> int:
        if self._is_remote:
            return REMOTE_PREFETCH_BATCHES
        # Two threads of short system calls lose more to handing over the interpreter's lock than
        # they gain; large reads release it for long enough to overlap.
        return 1 if self._is_cheap_to_read else 2

    @property
    def _is_cheap_to_read(self) -> bool:
        """Whether a batch is many short local reads, each of which releases the GIL."""
        is_small = self._payload.row_bytes_N[self._row_N[0]] < ROW_BYTES
        return bool(is_small) and not self._is_remote

    def _rank_rows(self, order: EpochOrder, step: int) -> np.ndarray:
        return self._row_N[order.batch(step, self.rank, self.world_size)]

    def _prefetch(self, order: EpochOrder, requests: Executor) -> RowGroupPrefetch:
        steps = range(self._step, len(order))
        batches = [self._rank_rows(order, step) for step in steps]
        return RowGroupPrefetch(self._payload, batches, requests, self._buffers)

    def _load(
        self,
        order: EpochOrder,
        step: int,
        prefetch: RowGroupPrefetch | None,
        access_B: np.ndarray,
        *,
        wait: bool = True,
    ) -> Batch:
        """Read this rank's slice of a global batch; with `wait=False` nothing if it would block."""
        start = time.perf_counter()
        global_rows = order.batch(step)
        kept_B = order.batch(step, self.rank, self.world_size)
        rows_B = self._row_N[kept_B]
        # A rank of a short batch may have no row of its own; its tensors still need a shape.
        file = int(self._payload.file_N[self._row_N[global_rows[0]]])
        shape = self._shape_b4[self._bucket_N[global_rows[0]]].tolist()
        memory = {
            column: self._buffers.empty(len(rows_B), self._payload.width(column, file))
            for column in self._columns
        }
        values = {column: tensor.numpy() for column, tensor in memory.items()}
        if prefetch:
            prefetch.read(rows_B, access_B, values)
        elif not self._payload.read(rows_B, values, wait=wait):
            return {}
        self._verify(kept_B, values)
        first_row = order.first_row(step, self.rank, self.world_size)
        batch: Batch = {"global_size": len(global_rows), "first_row": first_row}
        for column, tensor in memory.items():
            batch |= _view(column, tensor, shape)
        self._read_s = time.perf_counter() - start
        return batch

    def _verify(self, kept_B: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        for column, stored_N in self._checksum_N.items():
            # map: a loop in Python takes longer than the hashes of small values
            found_B = np.fromiter(map(checksum, values[column]), np.int64, len(kept_B))
            for row in kept_B[found_B != stored_N[kept_B]].tolist():
                file = self._snapshot.files[self._payload.file_N[self._row_N[row]]]
                what = f"damaged: {column} of clip {self._metadata['clip_id'][row]} has another "
                what += "checksum than was written"
                where = f"{self._snapshot.objects.url}/{file.key}"
                raise DamagedError(where, what, "restore it from a copy, or run its stage again")

    def _metadata_of_batches(self, order: EpochOrder) -> Iterator[Batch]:
        """Yield captions, labels and ids of this rank's batches from the current step on."""
        for start in range(self._step, len(order), METADATA_BATCHES):
            steps = range(start, min(start + METADATA_BATCHES, len(order)))
            kept = [order.batch(step, self.rank, self.world_size) for step in steps]
            table = self._metadata.take(pa.array(np.concatenate(kept)))
            labels, clip_ids = table["label"].to_pylist(), table["clip_id"].to_pylist()
            captions = list(map(self._prompt_of, table["caption"].to_pylist(), labels))
            ends = itertools.accumulate(map(len, kept), initial=0)
            for own in itertools.starmap(slice, itertools.pairwise(ends)):
                yield {"captions": captions[own], "labels": labels[own], "clip_ids": clip_ids[own]}


@contextlib.contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool that drops its queue on exit: after an error nobody reads those batches."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _require_known_layout(files: Sequence[FileRef], metadata: Sequence[Mapping[str, str]]) -> None:
    for file, entries in zip(files, metadata, strict=True):
        version = entries.get("layout_version", LAYOUT_VERSION)
        if version not in READABLE_LAYOUT_VERSIONS:
            readable = ", ".join(READABLE_LAYOUT_VERSIONS)
            what = f"layout version {version}, this version reads {readable}"
            raise ContractError(file.key, what, "tokenize its clips again")


def _only_tokenizer(snapshot: str, metadata: Sequence[Mapping[str, str]]) -> str:
    digests = sorted({entries.get("tokenizer_digest", "") for entries in metadata})
    if len(digests) > 1:
        raise ConfigError(snapshot, f"tokens of {len(digests)} tokenizers: {digests}")
    return digests[0]


def _select_rows(
    tables: Iterable[pa.Table], split: str, grids: Collection[tuple[int, int]]
) -> tuple[pa.Table, np.ndarray]:
    """Return the rows of a split and of some grids, and the number of each among all rows."""
    kept, numbers, first = [], [np.empty(0, np.int64)], 0
    for table in tables:
        is_kept = np.ones(len(table), dtype=bool)
        if split:
            is_kept &= np.array(table["split"].to_pylist(), dtype=object) == split
        if grids:
            sides = [table[side].to_numpy() for side in ("h", "w")]
            is_kept &= np.any([(sides[0] == h) & (sides[1] == w) for h, w in grids], axis=0)
        rows = np.flatnonzero(is_kept)
        # 64-bit offsets: the ids of 67 million rows take more than 2 GiB.
        large = [f.with_type(_LARGE.get(f.type, f.type)) for f in table.schema]
        kept.append(table.take(pa.array(rows)).cast(pa.schema(large)))
        numbers.append(first + rows)
        first += len(table)
    return pa.concat_tables(kept).combine_chunks(), np.concatenate(numbers)


def _distinct_shapes(shape_N4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct shapes [b, 4], sorted, and the number of each row's shape.

    Like `np.unique(axis=0, return_inverse=True)`, but one sort of integers instead of one of
    structured rows.
    """
    key_N = np.ravel_multi_index(tuple(shape_N4.T), shape_N4.max(axis=0) + 1)
    _, first_b, bucket_N = np.unique(key_N, return_index=True, return_inverse=True)
    return shape_N4[first_b], bucket_N


def _view(column: str, values_BW: torch.Tensor, shape: Sequence[int]) -> Batch:
    """Return a payload column under its name in a batch, latents in their shape."""
    if column != "latent":
        return {f"{column}_BN": values_BW}
    t, k, h, w = shape
    flat = values_BW.view(torch.float16)
    return {"latent_BTKHW": flat.view(len(values_BW), t, k, h, w)}
