"""Removes what a stage has found damaged, so that the next run makes it again.

A cached stage reads none of its output, so nothing but a later read finds that bytes have changed.
Once the file is gone, its commit counts as never made (`Dataset.find`) and its shard runs again.
Only what a stage of the same pipeline makes is removed, and only after it was read a second time.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from videoar.core.errors import DamagedError, StorageError, WithdrawnError
from videoar.pipeline.stage import Inputs
from videoar.storage import layout
from videoar.storage.audit import check_bytes
from videoar.storage.references import NamedFile, objects_of
from videoar.storage.store import Store

_HINT = "removed: run the pipeline again, which makes it again"


@contextmanager
def damage_removed(store: Store, inputs: Inputs, made: Collection[str]) -> Iterator[None]:
    """Remove what an error names as damaged or missing, with the data files whose rows name it.

    Args:
        store: where.
        inputs: what the code in the context reads.
        made: datasets that the pipeline makes again.

    Raises:
        DamagedError: something was removed.
    """
    try:
        yield
    except StorageError as error:
        key = error.where.removeprefix(f"{store.url}/")
        sha256 = layout.data_sha256(key) or layout.object_sha256(key)
        if error.retryable or isinstance(error, WithdrawnError) or sha256 is None:
            raise
        if not any(check_bytes(store.objects, key, sha256, None)):  # a fault of the machine
            raise
        if key.startswith(layout.TABLES_PREFIX):
            removable = [key] if _base(key) in made else []
        else:
            holders = [k for k in _holders(store, inputs, key) if _base(k) in made]
            # the object first: with the file gone, nobody would find it any more
            removable = [key, *holders] if holders else []
        if not removable:
            raise
        try:
            for each in removable:
                store.objects.delete(each)
        except StorageError as denied:  # the damage is the cause, not that it cannot be removed
            raise error from denied
        raise DamagedError(error.where, error.what, _HINT) from error


def _base(key: str) -> str:
    """Return the stage or input that makes a data file or its rejects."""
    return layout.dataset_of(key).partition(".")[0]


def _holders(store: Store, inputs: Inputs, key: str) -> Iterator[str]:
    """Yield the data files of inputs whose rows name an object."""
    for snapshot in inputs.values():
        for file in snapshot.files:
            named = NamedFile(file, snapshot.id, snapshot.contract)
            with suppress(StorageError):  # lost as well: its stage runs again anyway
                if key in {of.key for of in objects_of(store.objects, named)}:
                    yield file.key
