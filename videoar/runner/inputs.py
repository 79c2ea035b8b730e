"""Resolves the `inputs` of a pipeline to snapshots.

folder, file://, s3://, rendered://   listed now; the listing is a snapshot of `sources@1`
a folder with samples.parquet         of `videoar generate`: a snapshot of `samples@1`
NAME.txt, NAME.jsonl                  a file of prompts, read now: a snapshot of `prompts@1`
ref://NAME, snapshot://ID             a snapshot that is already in the store; with ?optional=true
                                      the input is absent if there is none
ref://NAME/PORT                       a parent of it: ref://champion/tokenizer; also of a parent

A listing omits withdrawn sources, by URL and etag. A copy of one under another URL is recognized by
its content when ingest reads it.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from videoar.contracts.contract import load_contract
from videoar.contracts.names import EVALSETS, PROMPTS, SAMPLES, SOURCES
from videoar.core.errors import ConfigError, SnapshotNotFoundError, StorageError
from videoar.core.ids import canonical_json, digest_json, seed_from
from videoar.core.scratch import Scratch
from videoar.core.types import FileRef, Provenance, Row
from videoar.evaluation.evalset import require_intact
from videoar.media.sources import list_sources, read_input
from videoar.pipeline.input_url import named_input
from videoar.pipeline.spec import PipelineSpec
from videoar.records.run import InputRun
from videoar.records.run_history import ended_runs, previous_input
from videoar.storage.collection import CollectionWatch
from videoar.storage.key_set import KeySet
from videoar.storage.layout import RETRIES_PREFIX, table_folder
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.table_spool import TableSpool, rows_of
from videoar.storage.takedown import (
    address_digest,
    place_digest,
    withdrawn_addresses,
    withdrawn_keys,
)
from videoar.training.prompts import PROMPT_FILES, read_prompts
from videoar.training.sample_folder import TABLE, read_sample, read_sample_folder

logger = logging.getLogger(__name__)
_BATCH_ROWS = 1_000  # chosen: rows as Python objects
_SLICE_ROWS = 8_192  # chosen: less than 1 MB as a file


class Listing:
    """A listing that is not committed yet, with the attributes of a snapshot that planning reads.

    Planning has no side effects, so it uses this; executing commits it.
    """

    def __init__(self, name: str, contract: str, tables: Iterable[pa.Table]) -> None:
        self.name = name
        self.contract = contract
        # none yet: stages plan their shards from the rows
        self.files: tuple[FileRef, ...] = ()
        # the name counts: equal listings of two inputs are snapshots of two datasets
        digest = hashlib.sha256(f'{{"listing":{canonical_json(name)},"rows":['.encode())
        schema = load_contract(contract).arrow_schema
        self._tables = TableSpool(schema, _hashed(tables, digest))
        digest.update(b"]}")
        self.digest = self.fingerprint = digest.hexdigest()

    def read(self) -> Iterator[pa.Table]:
        """Yield the rows, some thousands at a time."""
        return iter(self._tables)

    def table(self) -> pa.Table:
        """Return the rows."""
        schema = load_contract(self.contract).arrow_schema
        return pa.concat_tables([schema.empty_table(), *self.read()])

    def committed(self, store: Store) -> Snapshot | None:
        """Return the snapshot with these rows, if an earlier run committed it."""
        return store.dataset(self.name, self.contract).find(self.fingerprint)

    def commit(self, store: Store, provenance: Provenance) -> Snapshot:
        """Commit the rows as a snapshot of the dataset named like the input."""
        dataset = store.dataset(self.name, self.contract)
        listed = provenance.model_copy(update={"fingerprint": self.fingerprint})
        slices = _slices(self.read()) if self.contract == SOURCES else [self.table()]
        return dataset.commit([dataset.write(part) for part in slices], listed, {})


def _hashed(tables: Iterable[pa.Table], digest: "hashlib._Hash") -> Iterator[pa.Table]:
    """Yield tables; update a digest with the JSON of their rows, without brackets."""
    comma = b""
    for table in tables:
        for batch in table.to_batches(_BATCH_ROWS):
            digest.update(comma + canonical_json(batch.to_pylist())[1:-1].encode())
            comma = b","
        yield table


def _slices(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Split rows into files of about `_SLICE_ROWS`, by borders that depend on the rows.

    So a source that is added changes one file, and the others are stored already.
    """
    part: list[pa.Table] = []
    for table in tables:
        start = 0
        for end, uri in enumerate(table["uri"].to_pylist(), 1):
            if seed_from(uri) % _SLICE_ROWS == 0:
                yield pa.concat_tables([*part, table.slice(start, end - start)])
                part, start = [], end
        part.append(table.slice(start))
    if any(map(len, part)):
        yield pa.concat_tables(part)


class SampleListing(Listing):
    """The samples of a folder; their videos are stored when they are committed."""

    def __init__(self, name: str, folder: Path) -> None:
        table, self._paths = read_sample_folder(folder)
        super().__init__(name, SAMPLES, [table])

    def commit(self, store: Store, provenance: Provenance) -> Snapshot:
        """Store the videos, and commit the rows.

        Raises:
            ContractError: a video is missing or damaged.
        """
        watch = CollectionWatch(store)
        self._store_videos(store)
        snapshot = super().commit(store, provenance)
        if watch.has_collected():  # what rows of a commit name is never garbage again
            self._store_videos(store)
        return snapshot

    def _store_videos(self, store: Store) -> None:
        for path, sha256 in zip(self._paths, self.table()["video_sha256"].to_pylist(), strict=True):
            store.put_object(read_sample(path, sha256), ".mp4")


def resolve(store: Store, name: str, url: str) -> Snapshot | Listing | None:
    """Return the snapshot that an input names, or the listing that will become one; None: absent.

    Raises:
        ConfigError: no usable file is there.
        GateError: it is an evaluation set, and a takedown has removed a source of it.
        SnapshotNotFoundError: no such ref or snapshot, and the input is not optional.
    """
    if (named := named_input(url)) is not None:
        try:
            snapshot = _parent(store, store.snapshot(named.name), named.parents)
        except SnapshotNotFoundError as error:
            # a ref or parent that names a snapshot that is not there is damage, not absence
            is_absent = isinstance(error, _NoParentError) or (
                ":" in named.name or store.refs.head(named.name) is None
            )
            if named.is_optional and is_absent:
                return None
            what = f"{error.where}: {error.what}"
            raise SnapshotNotFoundError(f"inputs.{name}", what, error.hint) from error
        if snapshot.contract == EVALSETS:
            require_intact(snapshot)  # now: cached stages would not read it
        return snapshot
    if url.endswith(PROMPT_FILES):
        listing = Listing(name, PROMPTS, [_prompts(url)])
    elif Path(url, TABLE).is_file():
        listing = SampleListing(name, Path(url))
    else:
        rows = _without_withdrawn(store, name, url, _with_retries(store, list_sources(url)))
        listing = Listing(name, SOURCES, rows)
    # unchanged since an earlier run: no new snapshot, so nothing after it runs again
    return listing.committed(store) or listing


class _NoParentError(SnapshotNotFoundError):
    """A snapshot has no parent at the port that an input names."""


def _parent(store: Store, snapshot: Snapshot, ports: Sequence[str]) -> Snapshot:
    """Return the parent of a snapshot, its parent, and so on, by the ports of their stages."""
    for port in ports:
        parents = snapshot.commit.provenance.parents
        if port not in parents:
            what = f"was made without an input at port {port}"
            raise _NoParentError(
                snapshot.id, what, f"it has {', '.join(sorted(parents)) or 'none'}"
            )
        snapshot = store.snapshot(parents[port])
    return snapshot


def _prompts(url: str) -> pa.Table:
    contract = load_contract(PROMPTS)
    rows = list(read_prompts(read_input(url), url))
    return contract.conform(pa.Table.from_pylist(rows, contract.arrow_schema), url)


def _with_retries(store: Store, tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """Return a listing in which sources that are to be tried again have other etags.

    So their shards are new work; all others keep their results.
    """
    places = [key.removeprefix(RETRIES_PREFIX) for key in store.ledger.list(RETRIES_PREFIX)]
    counts = Counter(key.partition("/")[0] for key in places)

    def retried(table: pa.Table) -> pa.Table:
        etags = [
            f"{etag}+{n}" if (n := counts[place_digest(uri)]) else etag
            for uri, etag in _addresses(table)
        ]
        index = table.schema.get_field_index("etag")
        return table.set_column(index, table.schema.field(index), [etags])

    return map(retried, tables) if counts else tables


def _without_withdrawn(
    store: Store, name: str, url: str, tables: Iterable[pa.Table]
) -> Iterator[pa.Table]:
    withdrawn = withdrawn_addresses(store.ledger)
    if not withdrawn:  # a digest of each row takes seconds for many
        yield from tables
        return
    num_kept = num_omitted = 0
    for table in tables:
        keep = [address_digest(*each) not in withdrawn for each in _addresses(table)]
        num_kept, num_omitted = num_kept + keep.count(True), num_omitted + keep.count(False)
        yield table.filter(pa.array(keep))
    if num_omitted:
        logger.info("input %s: omitted %d withdrawn sources", name, num_omitted)
    if not num_kept:
        raise ConfigError(url, "all of its files were withdrawn", "add others")


def compare(store: Store, pipeline: str, run_id: str, name: str, listed: Snapshot) -> InputRun:
    """Count the new, changed and removed sources since the previous run of the pipeline."""
    result = InputRun(snapshot=listed.id, sources=listed.rows, new=listed.rows, changed=0, gone=0)
    previous = previous_input(store, pipeline, name, run_id)
    if previous is None:
        return result
    with _unless_gone(name):
        earlier = store.snapshot(previous.snapshot)
        shared = _shared_files(store, earlier, listed)
        # in columns: as Python objects a million addresses take a gigabyte
        old, new = (_without(of, shared).table(["uri", "etag"]) for of in (earlier, listed))
        places = pc.index_in(new["uri"], value_set=old["uri"])
        known = new.filter(places.is_valid())
        same = pc.equal(known["etag"], old["etag"].take(places.drop_null()))
        num_shared = listed.rows - _without(listed, shared).rows
        return InputRun(
            snapshot=listed.id,
            sources=num_shared + len(new),
            new=len(new) - len(known),
            changed=same.to_pylist().count(False),
            # a takedown may have removed rows of the old listing: use the count of that time
            gone=previous.sources - num_shared - len(known),
        )
    return result


def count_new(
    store: Store, name: str, baseline: str | None, listed: Snapshot | Listing
) -> tuple[int, int]:
    """Return number and bytes of the sources of a listing that are new or changed.

    Args:
        store: of the snapshots.
        name: of the input.
        baseline: snapshot of an earlier listing; None, or one that is gone: everything is new.
        listed: the listing of now.
    """
    sizes = [row["size_bytes"] for row in _new_rows(store, name, baseline, listed)]
    return len(sizes), sum(sizes)


def _new_rows(
    store: Store, name: str, baseline: str | None, listed: Snapshot | Listing
) -> Iterator[Row]:
    with Scratch() as folder, closing(KeySet(folder / "rows")) as known:
        if baseline:
            with _unless_gone(name):
                earlier = store.snapshot(baseline)
                shared = _shared_files(store, earlier, listed)
                if isinstance(listed, Snapshot):
                    listed = _without(listed, shared)
                for row in rows_of(_without(earlier, shared).read()):
                    known.add(digest_json(row))
        # all columns: a source with another caption or licence is new, too
        yield from (row for row in rows_of(listed.read()) if digest_json(row) not in known)


def _shared_files(store: Store, earlier: Snapshot, listed: Snapshot | Listing) -> set[str]:
    """Return the keys of files that two listings have in common: their rows are equal."""
    # of a withdrawn file other rows are read
    removed = withdrawn_keys(store.ledger, f"{table_folder(earlier.dataset)}/")
    return {f.key for f in earlier.files}.intersection(f.key for f in listed.files) - removed


def _without(listed: Snapshot, keys: Collection[str]) -> Snapshot:
    return listed.with_files([file for file in listed.files if file.key not in keys])


@contextmanager
def _unless_gone(name: str) -> Iterator[None]:
    """Log that an earlier listing is gone or damaged: that costs only this comparison."""
    try:
        yield
    except StorageError as error:
        if error.retryable:  # an unreachable store fails the run
            raise
        logger.warning("input %s: the previous listing cannot be read: %s", name, error)


def nothing_new(
    store: Store,
    spec: PipelineSpec,
    inputs: Mapping[str, Snapshot | Listing | None],
    before: str | None = None,
) -> str | None:
    """Return why a pipeline with `only_if_new` has nothing to do, None if it has.

    The newest run of an equal document that came to its end has used up its sources, also if its
    gate blocked. A run that was killed or failed has not: the next one, or `resume`, does its work.

    Args:
        store: where runs are recorded.
        spec: the pipeline.
        inputs: as they are now, by name.
        before: only runs older than this id count.
    """
    name = spec.only_if_new
    listed = inputs[name] if name else None
    if name is None or listed is None:
        return None
    for run in ended_runs(store, spec.name, before):
        # with other options, or another folder, it is another training
        if run.pipeline_digest == spec.digest:
            new = _new_rows(store, name, run.inputs[name].snapshot, listed)
            return (
                None if any(True for _ in new) else f"nothing new in {name} since run {run.run_id}"
            )
    return None


def _addresses(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True))
