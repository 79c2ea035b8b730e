"""Run ingest and filter on a store without an engine."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pyarrow as pa

from videoar.core.ids import digest_json
from videoar.core.types import Provenance
from videoar.media.sources import list_sources
from videoar.pipeline.context import StageContext
from videoar.stages.filter import FilterConfig, FilterStage
from videoar.stages.ingest.config import IngestConfig
from videoar.stages.ingest.stage import IngestStage
from videoar.stages.profile import ProfileConfig, ProfileStage
from videoar.storage.store import open_store


def provenance(stage, **facts):
    return Provenance(
        run_id="test",
        pipeline="test",
        stage=stage,
        fingerprint=digest_json([stage, facts]),
        code_version="test",
    )


def commit(store, name, contract, outputs, **facts):
    """Write outputs and commit them with their rejects; return the snapshot."""
    rejects = [o.rejects for o in outputs if o.rejects is not None and o.rejects.num_rows]
    refused = None
    if rejects:
        dataset = store.dataset(f"{name}.rejects", "rejects@1")
        files = [dataset.write(table) for table in rejects]
        refused = dataset.commit(files, provenance(f"{name}.rejects", **facts), {}).id
    dataset = store.dataset(name, contract)
    files = [dataset.write(o.rows) for o in outputs if o.rows.num_rows]
    metrics = sum((Counter(o.metrics) for o in outputs), Counter())
    return dataset.commit(files, provenance(name, **facts), metrics, rejects=refused)


def sources_snapshot(store, url):
    rows = pa.concat_tables(list_sources(url))
    dataset = store.dataset("videos", "sources@1")
    return dataset.commit([dataset.write(rows)], provenance("videos", url=url), {})


_mapper = None


def _open(config, store_url):
    global _mapper  # noqa: PLW0603 - one mapper per worker process
    _mapper = IngestStage(config).open({}, StageContext(open_store(store_url)))


def _run(shard):
    return _mapper(pa.Table.from_pylist([dict(row) for row in shard.rows]))


def ingest(store, url, workers=1, **options):
    """Ingest an input; return the clips snapshot and the summed metrics."""
    config = IngestConfig(**options)
    sources = sources_snapshot(store, url)
    shards = IngestStage(config).shards({"sources": sources})
    if workers == 1:
        mapper = IngestStage(config).open({}, StageContext(store))
        outputs = [mapper(pa.Table.from_pylist([dict(r) for r in s.rows])) for s in shards]
    else:
        start = partial(_open, config, store.url)
        with ProcessPoolExecutor(workers, get_context("spawn"), start) as pool:
            outputs = list(pool.map(_run, shards))
    metrics = Counter()
    for output in outputs:
        metrics.update(output.metrics)
    return commit(store, "clips", "clips@1", outputs, url=url, **options), metrics


def describe(store, clips):
    """Profile a clips snapshot."""
    outputs = list(ProfileStage(ProfileConfig()).reduce({"clips": clips}, StageContext(store)))
    return commit(store, "profile", "profiles@1", outputs, clips=clips.id)


def sift(store, clips, gate=True, profile=None, kept=None, **options):
    """Filter a clips snapshot; return the good clips' snapshot and the summed metrics."""
    stage = FilterStage(FilterConfig(**options))
    inputs = {"clips": clips} | ({"profile": profile} if profile else {})
    inputs |= {"kept": kept} if kept else {}
    outputs = list(stage.reduce(inputs, StageContext(store)))
    if gate:
        assert stage.check(inputs, pa.concat_tables([o.rows for o in outputs])).success
    metrics = Counter()
    for output in outputs:
        metrics.update(output.metrics)
    asked = {"inputs": {port: found.id for port, found in inputs.items()}, **options}
    return commit(store, "good", "clips@1", outputs, **asked), metrics
