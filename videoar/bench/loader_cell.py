"""One contestant of `bench loader`, in its own process: write the payload, or read it shuffled.

    python loader_cell.py write|read CONTESTANT FOLDER BATCH_SIZE

FOLDER holds `bits.npy` and `latent.npy`, uint8 [N, width]. The result of every contestant is the
same: both payloads of a batch in recycled torch buffers. Only this file imports peers, so that they
can be installed in an environment of their own, without this package; `ours` alone imports it.
Prints JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    import pyarrow as pa

    from videoar.training.data.token_loader import TokenLoader

WIDTHS = ("bits", "latent")
_CHUNK_BYTES = 64 << 20  # the default of LitData
_MIN_S = 1.0  # chosen: with epochs of 0.2 s, at least five of them
T = TypeVar("T")
Sample = tuple[Any, Any]


class Ring:
    """Recycled batches: allocating would take every contestant longer than reading."""

    def __init__(self, batch_size: int, widths: tuple[int, int]) -> None:
        self._slots = [
            tuple(np.empty((batch_size, width), np.uint8) for width in widths) for _ in range(4)
        ]
        self._batch_size, self._at = batch_size, 0

    def next(self) -> tuple[np.ndarray, ...]:
        """Return memory for the next batch."""
        self._at = (self._at + 1) % len(self._slots)
        return self._slots[self._at]

    def batches(self, samples: Iterator[Sample]) -> Iterator[int]:
        """Copy samples into batches; yield their sizes."""
        filled, slot = 0, self.next()
        for sample in samples:
            for memory, value in zip(slot, sample, strict=True):
                memory[filled] = np.frombuffer(value, np.uint8)
            filled += 1
            if filled == self._batch_size:
                yield _as_tensors(slot, filled)
                filled, slot = 0, self.next()
        if filled:
            yield _as_tensors(slot, filled)


def _as_tensors(slot: tuple[np.ndarray, ...], size: int) -> int:
    tensors = [torch.from_numpy(memory[:size]) for memory in slot]
    return len(tensors[0])


def payload(folder: Path) -> list[np.ndarray]:
    """Memory-map the rows that all contestants store."""
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in WIDTHS]


def rows(folder: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield all rows as bytes."""
    for number, (bits, latent) in enumerate(zip(*payload(folder), strict=True)):
        yield number, bits.tobytes(), latent.tobytes()


def write_raw(folder: Path, out: Path) -> None:
    """Write two plain files."""
    for name, values in zip(WIDTHS, payload(folder), strict=True):
        with (out / name).open("wb") as file:
            file.write(np.ascontiguousarray(values).data)


def read_raw(folder: Path, out: Path, batch_size: int, epoch: int) -> Iterator[int]:
    """Read with one pread per value, in a shuffled order: the limit of reading row by row."""
    widths = tuple(values.shape[1] for values in payload(folder))
    handles = [os.open(out / name, os.O_RDONLY) for name in WIDTHS]
    num_rows = os.fstat(handles[0]).st_size // widths[0]
    order, ring = np.random.default_rng(epoch).permutation(num_rows), Ring(batch_size, widths)
    for start in range(0, num_rows, batch_size):
        chosen, slot = order[start : start + batch_size].tolist(), ring.next()
        for handle, width, memory in zip(handles, widths, slot, strict=True):
            view = memory.data.cast("B")
            for place, row in enumerate(chosen):
                # into the batch itself: os.pread would allocate an object per value
                os.preadv(handle, [view[place * width : (place + 1) * width]], row * width)
        yield _as_tensors(slot, len(chosen))
    for handle in handles:
        os.close(handle)


def write_ours(folder: Path, out: Path) -> None:
    """Write four files of a token store."""
    from videoar.bench.stores import commit
    from videoar.contracts.names import TOKENS
    from videoar.storage.store import open_store

    shape = json.loads((folder / "shape.json").read_text())
    tables = token_tables(payload(folder), shape)
    snapshot = commit(open_store(out.as_uri()), "tokens", TOKENS, tables)
    (out / "snapshot").write_text(snapshot.id)


def token_tables(payload: list[np.ndarray], shape: Sequence[int]) -> Iterator["pa.Table"]:
    """Yield rows of `tokens@1`, in four parts, with a payload and plausible small columns."""
    for numbers in np.array_split(np.arange(len(payload[0])), 4):
        yield _token_table(payload, numbers, shape)


def _token_table(
    payload: list[np.ndarray], numbers: np.ndarray, shape: Sequence[int]
) -> "pa.Table":
    import pyarrow as pa

    from videoar.storage.token_codec import checksum

    count = len(numbers)
    columns: dict[str, list[Any]] = {
        "clip_id": [f"{number:032x}" for number in numbers],
        "source_id": [f"{number // 20:064x}" for number in numbers],
        "split": ["train"] * count,
        "label": [f"class {number % 5}" for number in numbers],
        "caption": [f"a clip of class {number % 5}" for number in numbers],
        **{name: [1.0] * count for name in ("rate_fps", "start_s", "duration_s")},
        **{name: [size] * count for name, size in zip("tkhw", shape, strict=True)},
    }
    for name, values in zip(WIDTHS, payload, strict=True):
        columns[name] = [values[number].tobytes() for number in numbers]
        columns[f"{name}_xxh3"] = [checksum(value) for value in columns[name]]
    return pa.table(columns)


def read_ours(folder: Path, out: Path, batch_size: int, epoch: int) -> Iterator[int]:  # noqa: ARG001 - the signature of all contestants
    """Iterate the loader as training does, including small columns."""
    loader = _once(lambda: _open_ours(out, batch_size))
    loader.seek(epoch * len(loader))
    for batch in loader:
        yield len(batch["latent_BTKHW"])


def _open_ours(out: Path, batch_size: int) -> "TokenLoader":
    from videoar.storage.store import open_store
    from videoar.training.data.token_loader import TokenLoader

    snapshot = open_store(out.as_uri()).snapshot((out / "snapshot").read_text())
    return TokenLoader(snapshot, batch_size, 0, split="", columns=WIDTHS)


def write_litdata(folder: Path, out: Path) -> None:
    """Write chunks, with the writer that `optimize` uses."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(out), chunk_bytes=_CHUNK_BYTES)
    for number, bits, latent in rows(folder):
        writer[number] = {"bits": bits, "latent": latent}
    writer.done()
    writer.merge(1)


def read_litdata(folder: Path, out: Path, batch_size: int, epoch: int) -> Iterator[int]:
    """Iterate the dataset, which shuffles itself."""
    from litdata import StreamingDataset

    opened = _once(lambda: StreamingDataset(str(out), shuffle=True))
    opened.set_epoch(epoch)
    yield from _ring(folder, batch_size).batches((s["bits"], s["latent"]) for s in opened)


def write_lance(folder: Path, out: Path) -> None:
    """Write a table of two fixed-size binary columns."""
    import lance
    import pyarrow as pa

    arrays = []
    for values in payload(folder):
        buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
        kind = pa.binary(values.shape[1])
        arrays.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(values), buffers))
    lance.write_dataset(pa.table(arrays, names=list(WIDTHS)), str(out / "rows.lance"))


def read_lance(folder: Path, out: Path, batch_size: int, epoch: int) -> Iterator[int]:
    """Read with `take` of a permutation."""
    import lance

    data = _once(lambda: lance.dataset(str(out / "rows.lance")))
    order = np.random.default_rng(epoch).permutation(data.count_rows())
    ring = _ring(folder, batch_size)
    for start in range(0, len(order), batch_size):
        table, slot = data.take(order[start : start + batch_size].tolist()), ring.next()
        for name, memory in zip(WIDTHS, slot, strict=True):
            done = 0
            for chunk in table[name].chunks:
                width = chunk.type.byte_width
                flat = np.frombuffer(chunk.buffers()[1], np.uint8)
                # a chunk may be a slice of a larger buffer
                own = flat[chunk.offset * width : (chunk.offset + len(chunk)) * width]
                memory[done : done + len(chunk)] = own.reshape(-1, width)
                done += len(chunk)
        yield _as_tensors(slot, table.num_rows)


_opened: dict[str, Any] = {}


def _once(make: Callable[[], T]) -> T:
    # once per process: epochs pay for reading, the first batch also for opening
    if "data" not in _opened:
        _opened["data"] = make()
    data: T = _opened["data"]
    return data


def _ring(folder: Path, batch_size: int) -> Ring:
    if "ring" not in _opened:
        _opened["ring"] = Ring(batch_size, tuple(v.shape[1] for v in payload(folder)))
    ring: Ring = _opened["ring"]
    return ring


CONTESTANTS: dict[str, tuple[Callable[..., None], Callable[..., Iterator[int]]]] = {
    "raw": (write_raw, read_raw),
    "ours": (write_ours, read_ours),
    "litdata": (write_litdata, read_litdata),
    "lance": (write_lance, read_lance),
}


def measure(name: str, folder: Path, batch_size: int) -> dict[str, float]:
    """Read whole epochs for at least a second; the first batch of each is not counted."""
    out, read = folder / name, CONTESTANTS[name][1]
    num_bytes = sum(values.shape[1] for values in payload(folder))
    start = time.perf_counter()
    batches = read(folder, out, batch_size, 0)
    next(batches)
    first_s = time.perf_counter() - start
    # the rest of the first epoch fills caches and is not timed
    for _ in batches:
        pass
    rates, cpu_s, seconds, total, epoch = [], 0.0, 0.0, 0, 0
    # at least three epochs: a median of fewer does not exclude an outlier
    while seconds < _MIN_S or epoch < 3:
        epoch += 1
        batches = read(folder, out, batch_size, epoch)
        next(batches)
        began, cpu_began = time.perf_counter(), time.process_time()
        count = sum(batches)
        passed = time.perf_counter() - began
        seconds, total = seconds + passed, total + count
        cpu_s += time.process_time() - cpu_began
        rates.append(count / passed)
    return {
        "samples_per_s": float(np.median(rates)),
        "cpu_s_per_gb": cpu_s / (total * num_bytes / 1e9),
        "first_batch_s": first_s,
        "rss_mib": _peak_mib(),
        "rows": total / epoch,
    }


def _peak_mib() -> float:
    """Return the peak RSS of this process; `ru_maxrss` would include the process it forked from."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


if __name__ == "__main__":
    action, contestant, place, size = sys.argv[1:]
    torch.set_num_threads(1)  # contestants differ in reading; none may gain by torch's threads
    if action == "write":
        (Path(place) / contestant).mkdir()
        CONTESTANTS[contestant][0](Path(place), Path(place) / contestant)
        print(json.dumps({}))
    else:
        print(json.dumps(measure(contestant, Path(place), int(size))))
