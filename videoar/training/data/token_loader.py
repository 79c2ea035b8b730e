"""Batches of tokens in an order that is a pure function of (snapshot digest, seed, epoch).

    order       `epoch_order`: global batches of one shape each, every row exactly once
    rank        takes its slice of every global batch, so any world size sees the same batches
    reading     threads of this process fill recycled buffers ahead of the training step; a caller
                who comes back sooner than they are done reads what the page cache holds himself
    state       (digest, seed, batch size, epoch, step): a position is all there is to know

From a local store every value is read straight into the batch. From S3, small rows come by whole
row groups, one ranged GET each, which stay until their last row has been used: at most one per lane
of this rank and shape of the rows, plus those on their way. Up to 1 GiB, shared by the shapes, is
permuted as a whole, so each rank may hold all of it. Rows of 128 KiB and more come one by one.

Small columns (captions, labels, ids) of all rows are held in memory: with captions of 40 characters
about 240 bytes a row (280 from S3), 460 while they are read.

Shapes: B batch (of this rank), T latent frames, K bits, H W latent grid, N rows.
"""

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import pyarrow as pa
import torch

from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError, ContractError, StorageError
from videoar.storage.layout import LAYOUT_VERSION, READABLE_LAYOUT_VERSIONS
from videoar.storage.payload import Payload, SpanCache
from videoar.storage.reader import read_footers
from videoar.storage.snapshot import Snapshot
from videoar.storage.token_codec import checksum
from videoar.training.data.epoch_order import ROW_BYTES, EpochOrder, epoch_order, order_rules

Batch = dict[str, Any]
_META = ["clip_id", "label", "caption"]
_SHAPE = ["t", "k", "h", "w"]
REQUESTS = 16  # measured: so many ranged GETs hide 50 ms, more only cost memory
UNITS_AHEAD = 8  # measured: 8 GETs of 16 MiB hide 20 ms
_BATCHES_FROM_FAR = 4
_BATCHES_A_LOOKUP = 32
_LARGE = {pa.string(): pa.large_string()}
_NO_VISIT = np.empty(0, np.int64)
_IDLE_BATCHES = 64  # chosen: a row group that waits longer for its next row is fetched again


class TokenLoader:
    """One rank's share of the global batches of a `tokens@1` snapshot; iterating runs one epoch.

    A batch holds `latent_BTKHW` (float16) and `bits_BN` (uint8, packed as stored), as far as they
    are among the columns, `captions`, `labels`, `clip_ids`, and `global_size`, the rows of the
    global batch. Memory of a batch is used again once nothing refers to its tensors any more.

    Args:
        snapshot: the token store.
        batch_size: rows of a global batch.
        seed: of the order.
        rank: which slice of every global batch to take.
        world_size: number of slices; divides `batch_size`.
        split: `train` or `val` keeps these rows alone, empty keeps all.
        columns: payload columns to read: `latent`, `bits` or both.
        equal_work: batches of smaller shapes hold more rows, so that a batch of any shape has about
            as many latent cells as `batch_size` rows of the largest.
        verify: check every value read against its xxh3.
        cache: folder that keeps what was fetched, for stores that are far away.

    Raises:
        ConfigError: the sizes do not fit, there is no such payload column, no row is left, or
            several tokenizers made the rows.
        ContractError: a file has another layout.
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
        verify: bool = False,
        cache: Path | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or batch_size % world_size:
            what = f"batch_size {batch_size} is not a multiple of world_size {world_size}"
            raise ConfigError("batch_size", f"{what}, or there is no rank {rank}")
        payloads = load_contract(snapshot.contract).payloads
        if not columns or not set(columns) <= set(payloads):
            raise ConfigError("columns", f"{list(columns)} are not among {sorted(payloads)}")
        # as the digest has them: equal stores whose files were committed in another order are equal
        files = tuple(sorted(snapshot.files, key=lambda file: file.sha256))
        if not files:
            raise ConfigError(snapshot.id, "no rows")
        commit = snapshot.commit.model_copy(update={"files": files})
        snapshot = replace(snapshot, commit=commit)
        self._snapshot, self._batch_size, self._seed = snapshot, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._columns, self._equal_work, self._verify = tuple(columns), equal_work, verify
        self._is_remote = not snapshot.objects.is_local
        keep = SpanCache(snapshot.objects, cache) if cache and self._is_remote else None
        footers = read_footers(snapshot.objects, files)
        self._payload = Payload(snapshot.objects, files, footers, self._columns, keep)
        sums = [f"{column}_xxh3" for column in self._columns] if verify else []
        tables = snapshot.read([*_META, *_SHAPE, *sums, "split"], footers=footers)
        meta, self._row_N = _kept(tables, split)
        self._meta = meta.drop_columns([*_SHAPE, "split"])
        self._split = split
        self._epoch = self._step = 0
        self._read_s = 0.0
        for file, notes in zip(files, self._payload.notes, strict=True):
            version = notes.get("layout_version", LAYOUT_VERSION)
            if version not in READABLE_LAYOUT_VERSIONS:
                readable = ", ".join(READABLE_LAYOUT_VERSIONS)
                what = f"layout version {version}, this version reads {readable}"
                raise ContractError(file.key, what, "tokenize its clips again")
        makers = sorted({notes.get("tokenizer_digest", "") for notes in self._payload.notes})
        if len(makers) > 1:
            raise ConfigError(snapshot.id, f"tokens of {len(makers)} tokenizers: {makers}")
        self.tokenizer_digest = makers[0]
        """Of the tokenizer that made the rows; empty if their files do not say it."""
        if not len(meta):
            raise ConfigError(snapshot.id, f"no rows in split {split!r}")
        shape_N4 = np.stack([meta[name].to_numpy() for name in _SHAPE], axis=1)
        self._shape_b4, self._bucket_N = _distinct(shape_N4)
        cells_b = self._shape_b4[:, [0, 2, 3]].prod(axis=1)
        self._sizes_b = batch_size * (cells_b.max() // cells_b if equal_work else cells_b**0)
        self._order_of: tuple[int, EpochOrder] | None = None
        self._buffers = _Buffers()

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self._meta)

    def __len__(self) -> int:
        """Return the batches of one epoch."""
        rows_b = np.bincount(self._bucket_N, minlength=len(self._shape_b4))
        return int((-(-rows_b // self._sizes_b)).sum())

    @property
    def identity(self) -> dict[str, int | str]:
        """What a position belongs to."""
        return {
            "digest": self._snapshot.digest,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "equal_work": self._equal_work,
            "split": self._split,
            "num_rows": self.num_rows,
            "order": order_rules(),
        }

    def seek(self, position: int) -> None:
        """Go to a number of batches after the start of epoch 0."""
        self._epoch, self._step = divmod(position, len(self))

    def endless(self) -> Iterator[Batch]:
        """Yield the rest of this epoch and all that follow."""
        while True:
            yield from self

    def state_dict(self) -> dict[str, int | str]:
        """Return the position after the batch that was yielded last."""
        return {**self.identity, "epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where a state was taken, at whatever world size.

        Raises:
            ConfigError: the state is of another snapshot, split, seed, batch size or order.
        """
        for name, value in self.identity.items():
            if state.get(name) != value:
                what = f"the state has {name} {state.get(name)}, this loader {value}"
                raise ConfigError("loader state", what, "go on with what it was saved with")
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch, then stand at the start of the next one."""
        order = self._order()
        threads, away_s = self._num_ahead(), 0.0
        with _threads(threads) as pool, _threads(REQUESTS) as requests:
            is_over = self._step >= len(order)  # as after the last batch of an epoch
            units = self._units(order, requests) if self._is_remote and not is_over else None
            ahead: deque[tuple[Batch | Future[Batch], np.ndarray]] = deque()
            for step, small in enumerate(self._small_columns(order), self._step):
                while len(ahead) <= threads and step + len(ahead) < len(order):
                    later = step + len(ahead)
                    visit_B = units.expect(self._mine(order, later)) if units else _NO_VISIT
                    load = partial(self._load, order, later, units, visit_B)
                    is_idle = self._is_short and away_s <= self._read_s
                    batch = load(wait=False) if is_idle else {}
                    ahead.append((batch or pool.submit(load), visit_B))
                loading, visit_B = ahead.popleft()
                batch = loading.result() if isinstance(loading, Future) else loading
                if units:
                    units.release(visit_B)
                self._step += 1
                left = time.perf_counter()
                yield batch | small
                away_s = time.perf_counter() - left
        self._epoch, self._step = self._epoch + 1, 0

    def _order(self) -> EpochOrder:
        if self._order_of is None or self._order_of[0] != self._epoch:
            rows_N = self._row_N
            key = (self._snapshot.digest, self._seed, self._epoch)
            order = epoch_order(
                self._bucket_N,
                self._payload.unit_N[rows_N],
                self._payload.row_bytes_N[rows_N],
                self._sizes_b,
                key,
            )
            self._order_of = (self._epoch, order)
        return self._order_of[1]

    def _num_ahead(self) -> int:
        """Return how many batches to read at once.

        Two threads that make short system calls spend more on handing over the interpreter's lock
        than they gain; requests of several batches keep all connections busy.
        """
        if self._is_remote:
            return _BATCHES_FROM_FAR
        return 1 if self._is_short else 2

    @property
    def _is_short(self) -> bool:
        """Whether a thread that reads a batch from memory takes more than it saves.

        Each of its many short reads hands over the interpreter's lock.
        """
        is_small = self._payload.row_bytes_N[self._row_N[0]] < ROW_BYTES
        return bool(is_small) and not self._is_remote

    def _mine(self, order: EpochOrder, step: int) -> np.ndarray:
        return self._row_N[order.batch(step, self.rank, self.world_size)]

    def _units(self, order: EpochOrder, requests: Executor) -> "_Units":
        steps = range(self._step, len(order))
        batches = [self._mine(order, step) for step in steps]
        return _Units(self._payload, batches, requests, self._buffers)

    def _load(
        self,
        order: EpochOrder,
        step: int,
        units: "_Units | None",
        visit_B: np.ndarray,
        *,
        wait: bool = True,
    ) -> Batch:
        """Read this rank's slice of a global batch; nothing if that would have to wait."""
        began = time.perf_counter()
        whole = order.batch(step)
        kept_B = order.batch(step, self.rank, self.world_size)
        rows_B = self._row_N[kept_B]
        file = int(self._payload.file_N[self._row_N[whole[0]]])
        shape = self._shape_b4[self._bucket_N[whole[0]]].tolist()
        memory = {
            column: self._buffers.take(len(rows_B), self._payload.width(column, file))
            for column in self._columns
        }
        values = {column: tensor.numpy() for column, tensor in memory.items()}
        if units:
            units.read(rows_B, visit_B, values)
        elif not self._payload.read(rows_B, values, wait=wait):
            return {}
        if self._verify:
            self._check(kept_B, values)
        batch: Batch = {"global_size": len(whole)}
        for column, tensor in memory.items():
            batch |= _view(column, tensor, shape)
        self._read_s = time.perf_counter() - began
        return batch

    def _check(self, kept_B: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        meta = self._meta.take(pa.array(kept_B))
        for column, values_BW in values.items():
            for clip, stored, value in zip(
                meta["clip_id"].to_pylist(),
                meta[f"{column}_xxh3"].to_pylist(),
                values_BW,
                strict=True,
            ):
                if checksum(value.data) != stored:
                    what = f"{column} fails its checksum"
                    raise StorageError(f"{self._snapshot.id}/{clip}", what)

    def _small_columns(self, order: EpochOrder) -> Iterator[Batch]:
        """Yield captions, labels and ids of this rank's batches from the current step on.

        Looked up for many batches at once: a look-up costs more than the rows that it finds.
        """
        for start in range(self._step, len(order), _BATCHES_A_LOOKUP):
            steps = range(start, min(start + _BATCHES_A_LOOKUP, len(order)))
            kept = [order.batch(step, self.rank, self.world_size) for step in steps]
            meta = self._meta.take(pa.array(np.concatenate(kept)))
            captions = [caption or "" for caption in meta["caption"].to_pylist()]
            labels, clip_ids = meta["label"].to_pylist(), meta["clip_id"].to_pylist()
            ends = itertools.accumulate(map(len, kept), initial=0)
            for mine in itertools.starmap(slice, itertools.pairwise(ends)):
                yield {
                    "captions": captions[mine],
                    "labels": labels[mine],
                    "clip_ids": clip_ids[mine],
                }


@contextlib.contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool that ends with what is at work: what waits is for nobody any more."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _kept(tables: Iterable[pa.Table], split: str) -> tuple[pa.Table, np.ndarray]:
    """Return the rows of a split, and the number of each among all rows."""
    kept, numbers, first = [], [np.empty(0, np.int64)], 0
    for table in tables:
        splits = np.array(table["split"].to_pylist(), dtype=object)
        rows = np.flatnonzero(splits == split) if split else np.arange(len(table))
        # 64-bit offsets: ids of 67 million rows take more than 2 GiB
        large = [f.with_type(_LARGE.get(f.type, f.type)) for f in table.schema]
        kept.append(table.take(pa.array(rows)).cast(pa.schema(large)))
        numbers.append(first + rows)
        first += len(table)
    return pa.concat_tables(kept).combine_chunks(), np.concatenate(numbers)


def _distinct(shape_N4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct shapes b in order, and the number of each row's; as fast as one sort."""
    key_N = np.ravel_multi_index(tuple(shape_N4.T), shape_N4.max(axis=0) + 1)
    _, first_b, bucket_N = np.unique(key_N, return_index=True, return_inverse=True)
    return shape_N4[first_b], bucket_N


class _Units:
    """Values from a store that answers late: requests run ahead, and none is made twice.

    Small rows come out of whole row groups. A visit is the time for which a row group is wanted: it
    is fetched for its first row and dropped after its last one. Where two lanes share a row group,
    their visits are an epoch apart, and it is fetched twice.

    One thread expects and releases; `read` may be called from any.

    Args:
        payload: what is read.
        batches: the rows of all batches that will be read, in that order.
        requests: threads that wait for the store.
        buffers: memory for row groups.
    """

    def __init__(
        self,
        payload: Payload,
        batches: Sequence[np.ndarray],
        requests: Executor,
        buffers: "_Buffers",
    ) -> None:
        self._payload, self._requests, self._buffers = payload, requests, buffers
        units = [self._units_of(rows_B) for rows_B in batches]
        unit_n = np.concatenate(units)
        batch_n = np.repeat(np.arange(len(units)), [len(of_batch) for of_batch in units])
        self._visit_n, self._unit_v, first_v = _visits(unit_n, batch_n)
        self._queue = deque(np.argsort(first_v, kind="stable").tolist())
        self._left_v = np.bincount(self._visit_n, minlength=1)
        self._position = 0
        self._open: dict[int, Future[np.ndarray]] = {}
        self._touched: set[int] = set()

    def expect(self, rows_B: np.ndarray) -> np.ndarray:
        """Send for what the next batch needs, and for more; return the visits of its rows."""
        end = self._position + len(self._units_of(rows_B))
        visit_B, self._position = self._visit_n[self._position : end], end
        needed = set(visit_B.tolist())
        self._touched |= needed
        while self._queue and (
            needed - self._open.keys() or len(self._open.keys() - self._touched) < UNITS_AHEAD
        ):
            visit = self._queue.popleft()
            self._open[visit] = self._requests.submit(self._fetch, int(self._unit_v[visit]))
        return visit_B

    def release(self, visit_B: np.ndarray) -> None:
        """Drop the row groups whose visit is over."""
        visits, counts = np.unique(visit_B, return_counts=True)
        self._left_v[visits] -= counts
        for visit in visits[self._left_v[visits] == 0].tolist():
            del self._open[visit]
            self._touched.discard(visit)

    def read(self, rows_B: np.ndarray, visit_B: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Do what `Payload.read` does."""
        if len(visit_B):
            spans = {visit: self._open[visit].result().data for visit in set(visit_B.tolist())}
            self._payload.pick(rows_B, [spans[visit] for visit in visit_B.tolist()], out)
            return
        parts = [slice(i, i + 1) for i in range(len(rows_B))]
        if not self._payload.is_direct:
            parts = [slice(None)]  # another writer's file is decoded as a whole: once a batch
        reads = [
            self._requests.submit(self._payload.read, rows_B[part], {column: values[part]})
            for part in parts
            for column, values in out.items()
        ]
        for done in reads:
            done.result()

    def _fetch(self, unit: int) -> np.ndarray:
        span = self._buffers.take(self._payload.unit_bytes(unit)).numpy()
        self._payload.read_unit(unit, span)
        return span

    def _units_of(self, rows_B: np.ndarray) -> np.ndarray:
        """Return the row groups of those rows that are not worth a request of their own."""
        if not self._payload.is_direct:
            return np.empty(0, np.int64)
        return self._payload.unit_N[rows_B[self._payload.row_bytes_N[rows_B] < ROW_BYTES]]


def _visits(unit_n: np.ndarray, batch_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the visit of each use of a unit, and of each visit its unit and its first use."""
    by_unit = np.lexsort((batch_n, unit_n))
    unit, batch = unit_n[by_unit], batch_n[by_unit]
    starts = np.ones(len(unit), bool)
    starts[1:] = (np.diff(unit) != 0) | (np.diff(batch) > _IDLE_BATCHES)
    visit_n = np.empty(len(unit), np.int64)
    visit_n[by_unit] = np.cumsum(starts) - 1
    return visit_n, unit[starts], by_unit[starts]


class _Buffers:
    """Memory that is used again once nobody looks at it: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._is_pinned = torch.cuda.is_available()

    def take(self, *shape: int) -> torch.Tensor:
        """Return a uint8 tensor; its memory lives as long as it, its arrays and its views.

        Where there is a GPU it is pinned, so that copies to it do not wait. torch then is the one
        who uses it again: it alone knows when a copy that was asked for is done.
        """
        if self._is_pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        room = 1 << max(0, size - 1).bit_length()  # few sizes: else every odd one would be kept
        free = self._free.setdefault(room, [])
        try:
            memory = free.pop()
        except IndexError:
            # not `np.empty`: the huge pages that it asks for cost more to find than they save
            memory = torch.empty(room, dtype=torch.uint8).numpy()
        array = memory[:size].reshape(shape)
        finalize(array, free.append, memory).atexit = False  # the tensor keeps the array
        return torch.from_numpy(array)


def _view(column: str, values_BW: torch.Tensor, shape: Sequence[int]) -> Batch:
    t, k, h, w = shape
    if column != "latent":
        return {f"{column}_BN": values_BW}
    flat = values_BW.view(torch.float16)
    return {"latent_BTKHW": flat.view(len(values_BW), t, k, h, w)}
