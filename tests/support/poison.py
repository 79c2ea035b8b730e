"""A stage some of whose rows do something to the process, or to the machine, that maps them."""

import ctypes
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from tests.support.toys import Upper, UpperConfig
from videoar.core.ids import digest_json
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, Output, Shard
from videoar.storage.store import Store

REGISTRY = {"poison": "tests.support.poison:Poison"}
_ROWS = 4  # per shard
LARGE_BYTES = 4 << 20  # of a row of a name with `-large`


def crash() -> None:
    """End this process by SIGSEGV."""
    ctypes.string_at(0)


def die() -> None:
    """End this process as the kernel does that has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def starve() -> None:
    raise MemoryError("17 GiB")


def hog() -> None:
    """Take 0.4 GiB in a process that may have no more than Ray has reserved for it."""
    import ray

    reserved = ray.get_runtime_context().get_assigned_resources()["memory"]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(used + reserved), limits[1]))
    try:
        bytearray(int(0.4 * 2**30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


FAULTS: Mapping[str, Callable[[], object]] = {
    "exit": lambda: os._exit(7), "crash": crash, "die": die, "fill": fill, "starve": starve,
    "hog": hog, "hang": lambda: time.sleep(600),
}  # fmt: skip


class PoisonConfig(UpperConfig):
    only_node: str = ""
    """Rows act on this node only; empty: on each."""
    at_most: int = 1000
    """The row acts so many times, in all processes together."""


class Poison(Upper):
    name = "poison"
    config_type = PoisonConfig

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        rows = sorted(inputs["sources"].table().to_pylist(), key=lambda row: row["name"])
        parts = [tuple(rows[i : i + _ROWS]) for i in range(0, len(rows), _ROWS)]
        return [Shard(i, digest_json(list(part)), rows=part) for i, part in enumerate(parts)]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        mapper = super().open(inputs, context)

        def act(batch: pa.Table) -> Output:
            for name in batch["name"].to_pylist():
                fault = FAULTS.get(name.partition(".")[0].partition("-")[2])
                if fault and self._is_here():
                    tried = context.store.ledger.append(f"tried/{name}", {})
                    if tried < self.config.at_most:
                        fault()
            output = mapper(batch)
            if any("-large" in name for name in batch["name"].to_pylist()):
                rows = output.rows
                uris = [f"{uri}#{'x' * LARGE_BYTES}" for uri in rows["uri"].to_pylist()]
                place = rows.column_names.index("uri")
                return Output(rows.set_column(place, "uri", pa.array(uris)))
            return output

        return act

    def _is_here(self) -> bool:
        if not self.config.only_node:
            return True
        import ray

        is_here = ray.get_runtime_context().get_node_id() == self.config.only_node
        time.sleep(0 if is_here else 0.5)  # so that this node gets work, too
        return is_here


def document(videos: Path, *names: str, **options: object) -> dict:
    """Return a pipeline of the stage alone, over files of these names."""
    videos.mkdir(exist_ok=True)
    for name in names:
        (videos / f"{name}.mp4").write_bytes(b"x" * 10)
    stage = {"stage": "poison", "from": {"sources": "videos"}, **options}
    return {"pipeline": "poison", "inputs": {"videos": str(videos)}, "stages": {"big": stage}}


def tries(store: Store, name: str) -> int:
    """Return how often a row has been reached in a process that it then harmed."""
    return store.ledger.length(f"tried/{name}.mp4")
