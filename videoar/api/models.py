"""Verbs on models: load them, generate with them, report on their runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from videoar.api.runs import Document, ls, make_engine
from videoar.api.schedule import schedule_ls
from videoar.core.errors import ConfigError, DamagedError
from videoar.core.settings import share_cores

if TYPE_CHECKING:
    from videoar.admin.generate import Request
    from videoar.admin.loaded_model import LoadedModel, SampleOptions
    from videoar.storage.store import Store


def load(
    name: str | Path,
    *,
    text_encoder: str | Path = "",
    store: Store | Callable[[], Store] | None = None,
    device: str | None = None,
) -> LoadedModel:
    """Load a model with its tokenizer, checked against each other, ready to sample from.

        videoar.load("champion").sample("a prompt", seconds=2, seed=0).save("x.mp4")

    Args:
        name: path of an export, which needs no store, or else a name of the store: a ref, a
            snapshot, RUN/STAGE.
        text_encoder: folder of the frozen text encoder, for a model that was trained with one.
        store: where a name is looked up, or what opens it; by default that of `VIDEOAR_STORE`.
        device: of torch; by default a GPU if there is one.

    Raises:
        ConfigError: there is no such export; the name is no transformer; its tokenizer is not in
            the store; or the text encoder is missing or another one.
        ContractError: a part does not fit the others.
        StorageError: a file is damaged or missing, or nothing in the store has this name.
    """
    share_cores()  # before torch is imported
    from videoar.admin.loaded_model import is_export, load_export, load_stored
    from videoar.api.ops import open_store

    encoder = str(text_encoder) if text_encoder else ""
    # no name of a store begins like these
    is_path = isinstance(name, Path) or name.startswith(("/", "."))
    if is_path or is_export(Path(name)):
        return load_export(Path(name), text_encoder=encoder, on=device)
    found = store() if callable(store) else store or open_store()
    return load_stored(found, str(name), text_encoder=encoder, on=device)


def generate(
    loaded: LoadedModel, out: str | Path, request: Request, **options: Unpack[SampleOptions]
) -> Document:
    """Write samples as MP4 files with a manifest and a table; see `videoar.admin.generate`.

        api.generate(api.load("champion"), "folder", {"prompt": "a cat", "num": 4}, seconds=2)

    Args:
        loaded: from `load`.
        out: folder, new, empty or of the same call, which is then completed.
        request: prompts, numbers and seed.
        **options: as of `LoadedModel.sample`.

    Returns:
        `{samples: [{path, prompt, seed}], steps, seconds}`.

    Raises:
        ConfigError: a prompt, option or the folder cannot be used; nothing was written.
        MediaError: `init` cannot be decoded; nothing was written.
    """
    from videoar.admin import generate

    rows = generate.requested_rows(loaded, request)
    generator, batch = loaded.generator(**options), max(1, request.get("batch", 4))
    return generate.generate(generator, rows, Path(out).absolute(), batch)


def serve(
    store: Store,
    models: Sequence[str],
    *,
    target: str = "local",
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    max_replicas: int = 1,
    max_batch: int = 8,
    text_encoder: str = "",
    gpus: float | None = None,
    drain_s: float = 30.0,
    max_queue: int = 100,
    requests_per_s: float = 20.0,
) -> None:
    """Serve models over HTTP until SIGTERM; see `videoar.serving`.

    Args:
        store: of the models and the jobs.
        models: refs, other names of the store or paths of exports; the first is the default.
        target: `local`, `inline`, or the address of a Ray cluster.
        host: address to listen on.
        port: port to listen on.
        keys: file of API keys, see `read_keys`; None: everybody may do everything.
        max_replicas: most replicas of each model, by the length of the queue.
        max_batch: most videos in one batch.
        text_encoder: folder of the frozen text encoder, for models that were trained with one.
        gpus: GPUs of a replica; None: one if the cluster has any.
        drain_s: how long running jobs may take after SIGTERM.
        max_queue: jobs that may wait; more are answered with 429.
        requests_per_s: of an API key or an address; more are answered with 429.

    Raises:
        ConfigError: an option cannot be used, or a model does not exist.
        LeaseHeldError: another server works on the jobs of this store.
        VideoARError: a replica does not start.
    """
    share_cores()  # before torch is imported
    make_engine(target)  # starts nothing, and rejects what is no target
    from pydantic import ValidationError

    from videoar.core.types import Resources
    from videoar.serving import serve
    from videoar.serving.auth import read_keys
    from videoar.serving.limits import Limits
    from videoar.serving.replica import ReplicaOptions
    from videoar.serving.server import ServerSettings

    try:
        options = serve.ServeOptions(
            models=tuple(
                ReplicaOptions(model=model, text_encoder=text_encoder, max_batch=max_batch)
                for model in models
            ),
            host=host,
            port=port,
            resources=Resources(workers=(1, max_replicas), gpus=gpus or 0.0),
            gpu_if_any=gpus is None,
            drain_s=drain_s,
            settings=ServerSettings(
                keys=read_keys(keys) if keys else {},
                limits=Limits(
                    max_queue=max_queue,
                    requests_per_s=requests_per_s,
                    burst=max(1, round(2 * requests_per_s)),
                ),
                drain_s=drain_s,
            ),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"serve: {'.'.join(map(str, first['loc']))}", first["msg"]) from error
    serve.serve(store, options, target)


def report(store: Store, name: str | None = None, out: Path | None = None) -> str:
    """Render a run's report page into the store, or to `out`; return its path.

    Raises:
        ConfigError: no such run, or `out` cannot be written.
    """
    from videoar.records.names import find_run
    from videoar.report.publish import render_page, render_report

    run_id = find_run(store, name)
    if out is not None:
        return _write(out, render_page(store, run_id))
    return store.objects.location(render_report(store, run_id)[0])


def report_index(store: Store, out: Path | None = None, *, limit: int | None = None) -> str:
    """Render the page of a store into it, or to `out`; return its path.

    Args:
        store: its runs, refs, schedules and datasets are read.
        out: file to write.
        limit: newest runs, and entries of each ref, to show; None shows all.

    Raises:
        ConfigError: `out` cannot be written.
        DamagedError: the page was written, without what cannot be read.
    """
    from videoar.report.index import collect_index
    from videoar.report.page import render_index
    from videoar.storage.layout import INDEX_PAGE_KEY

    # a browser opens no s3://: from a file elsewhere, pages of such a store are not linked
    folder = f"{store.url}/" if store.url.startswith("file:") else None
    index = collect_index(
        store,
        limit,
        runs=ls(store, limit),
        schedules=schedule_ls(store),
        now=time.time(),
        links="" if out is None else folder,
    )
    page = render_index(index).encode()
    if out is not None:
        path = _write(out, page)
    else:
        store.objects.put(INDEX_PAGE_KEY, page)
        path = store.objects.location(INDEX_PAGE_KEY)
    if lines := [line for of_section in index.damage.values() for line in of_section]:
        what = f"written without {len(lines)} that cannot be read, the first: {lines[0]}"
        raise DamagedError(path, what, "the page lists them")
    return path


def compare(store: Store, old: str, new: str, out: Path) -> Document:
    """Write the page of two runs or snapshots to a file.

    Returns:
        `{path, old, new, counts, changes, num_pairs}`; changes are `new` minus `old`.

    Raises:
        SnapshotNotFoundError: nothing in the store has one of the names.
        ConfigError: a prefix matches several things, or `out` cannot be written.
    """
    from videoar.report import comparison
    from videoar.report.page import render_comparison

    compared = comparison.compare(store, old, new)
    path = _write(out, render_comparison(compared).encode())
    return {"path": path, **comparison.numbers(compared)}


def _write(out: Path, page: bytes) -> str:
    try:
        out.write_bytes(page)
    except OSError as error:
        raise ConfigError(f"--out {out}", f"cannot be written: {error.strerror}") from error
    return str(out)


def report_path(store: Store, run_id: str) -> str | None:
    """Return where a run's report page is; None if it has not been rendered."""
    from videoar.storage.layout import report_key

    # the size only: a page has megabytes of videos in it
    key = report_key(run_id)
    return store.objects.location(key) if store.objects.size(key) is not None else None
