"""Raw inputs: what a pipeline's `inputs` name, as snapshots.

folder, file://, s3://, rendered://   listed now; the listing is a snapshot of `sources@1`
ref://NAME, snapshot://ID             a snapshot that is already in the store
"""

import pyarrow as pa

from videoar.core.ids import digest_json
from videoar.core.types import Provenance
from videoar.media.sources import list_sources
from videoar.pipeline.spec import INPUT_CONTRACT
from videoar.storage.store import Store
from videoar.storage.tables import Snapshot


class Listing:
    """A listing that may not be committed yet: all that planning needs of a snapshot.

    Planning has no side effects, so it works on this; executing commits it.
    """

    def __init__(self, name: str, table: pa.Table) -> None:
        self.name = name
        self.contract = INPUT_CONTRACT
        self.files = ()
        self.fingerprint = digest_json({"listing": name, "rows": table.to_pylist()})
        self.digest = self.fingerprint
        self._table = table

    def table(self) -> pa.Table:
        """Return the rows."""
        return self._table

    def committed(self, store: Store) -> Snapshot | None:
        """Return the snapshot with these rows, if an earlier run committed it."""
        return store.dataset(self.name, INPUT_CONTRACT).find(self.fingerprint)

    def commit(self, store: Store, provenance: Provenance) -> Snapshot:
        """Commit the rows as a snapshot of the dataset named like the input."""
        dataset = store.dataset(self.name, INPUT_CONTRACT)
        asked = provenance.model_copy(update={"fingerprint": self.fingerprint})
        return dataset.commit([dataset.write(self._table)], asked, {})


def resolve(store: Store, name: str, url: str) -> Snapshot | Listing:
    """Return the snapshot that an input names, or the listing that will become one.

    Raises:
        ConfigError: nothing is there, or it is empty.
        SnapshotNotFoundError: no such ref or snapshot.
    """
    for scheme in ("ref://", "snapshot://"):
        if url.startswith(scheme):
            return store.snapshot(url.removeprefix(scheme))
    listing = Listing(name, list_sources(url))
    return listing.committed(store) or listing
