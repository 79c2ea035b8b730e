"""Search all objects of a store for a text or for bytes, Parquet decoded."""

import io
from collections.abc import Iterator

import pyarrow.parquet as pq

from videoar.storage.store import Store


def holding_text(store: Store, wanted: str | bytes) -> list[str]:
    """Return the keys of the objects that contain it."""
    found = ((info.key, store.objects.get(info.key)) for info in store.objects.list(""))
    return [key for key, data in found if holds(data, wanted)]


def holds(data: bytes, wanted: str | bytes) -> bool:
    raw = wanted.encode() if isinstance(wanted, str) else wanted
    if raw in data:
        return True
    return data.startswith(b"PAR1") and any(str(wanted) in text for text in _texts(data))


def _texts(data: bytes) -> Iterator[str]:
    table = pq.read_table(io.BytesIO(data))
    yield from (repr(row) for row in table.to_pylist())
    yield repr(table.schema.metadata)
