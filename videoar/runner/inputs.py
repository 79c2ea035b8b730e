"""Raw inputs: what a pipeline's `inputs` name, as snapshots.

folder, file://, s3://, rendered://   listed now; the listing is a snapshot of `sources@1`
ref://NAME, snapshot://ID             a snapshot that is already in the store

A listing leaves out the sources that were taken down, by address and etag; a copy of one under
another address is known by its content when ingest reads it.
"""

import logging

import pyarrow as pa

from videoar.contracts.names import SOURCES
from videoar.core.errors import ConfigError, StorageError
from videoar.core.ids import digest_json
from videoar.core.types import Provenance
from videoar.media.sources import list_sources
from videoar.records.run_record import InputRun, previous_input
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.takedown import address_digest, forgotten_addresses

logger = logging.getLogger(__name__)


class Listing:
    """A listing that may not be committed yet: all that planning needs of a snapshot.

    Planning has no side effects, so it works on this; executing commits it.
    """

    def __init__(self, name: str, table: pa.Table) -> None:
        self.name = name
        self.contract = SOURCES
        self.files = ()
        self.fingerprint = digest_json({"listing": name, "rows": table.to_pylist()})
        self.digest = self.fingerprint
        self._table = table

    def table(self) -> pa.Table:
        """Return the rows."""
        return self._table

    def committed(self, store: Store) -> Snapshot | None:
        """Return the snapshot with these rows, if an earlier run committed it."""
        return store.dataset(self.name, SOURCES).find(self.fingerprint)

    def commit(self, store: Store, provenance: Provenance) -> Snapshot:
        """Commit the rows as a snapshot of the dataset named like the input."""
        dataset = store.dataset(self.name, SOURCES)
        asked = provenance.model_copy(update={"fingerprint": self.fingerprint})
        return dataset.commit([dataset.write(self._table)], asked, {})


def resolve(store: Store, name: str, url: str) -> Snapshot | Listing:
    """Return the snapshot that an input names, or the listing that will become one.

    Raises:
        ConfigError: nothing is there, or nothing that may be used.
        SnapshotNotFoundError: no such ref or snapshot.
    """
    for scheme in ("ref://", "snapshot://"):
        if url.startswith(scheme):
            return store.snapshot(url.removeprefix(scheme))
    listing = Listing(name, _without_forgotten(store, name, url, list_sources(url)))
    return listing.committed(store) or listing


def _without_forgotten(store: Store, name: str, url: str, rows: pa.Table) -> pa.Table:
    gone = forgotten_addresses(store.ledger)
    keep = [address_digest(uri, etag) not in gone for uri, etag in _addresses(rows)]
    left_out = keep.count(False)
    if left_out:
        logger.info("input %s: left out %d sources that were taken down", name, left_out)
    if left_out == len(keep):
        raise ConfigError(url, "all of its files were taken down", "add others")
    return rows.filter(pa.array(keep))


def compare(store: Store, pipeline: str, run_id: str, name: str, listed: Snapshot) -> InputRun:
    """Count what is new, changed and gone in a listing since the pipeline's run before."""
    before = previous_input(store, pipeline, name, run_id)
    try:
        rows = store.snapshot(before.snapshot).table(["uri", "etag"]) if before else None
    except StorageError as error:
        if error.retryable:
            raise
        logger.warning("input %s: compared with nothing: %s", name, error)
        before = rows = None
    old = dict(_addresses(rows)) if rows else {}
    new = dict(_addresses(listed.table(["uri", "etag"])))
    return InputRun(
        snapshot=listed.id,
        sources=len(new),
        new=len(new.keys() - old.keys()),
        changed=sum(old[uri] != new[uri] for uri in new.keys() & old.keys()),
        # a take-down has removed rows of the old listing, so its own count is asked
        gone=(before.sources if before else 0) - len(old.keys() & new.keys()),
    )


def _addresses(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True))
