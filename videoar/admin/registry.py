"""The MLflow mirror of a store, kept equal to it: runs, and the refs that point at models.

MLflow is a mirror. A move of a ref, or a run, does not fail for it: what could not be mirrored is
one line of the log, and `videoar doctor --fix` does it later.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from videoar.contracts.names import MODELS
from videoar.core.errors import VideoARError, one_line
from videoar.core.settings import settings
from videoar.pipeline.spec import PipelineSpec
from videoar.records.mlflow import aliases, client, runs
from videoar.records.run_record import load_run
from videoar.storage.layout import report_key
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
FIX = "videoar doctor --fix"
LATER = f"{FIX} does it later"


def mirror_run(store: Store, spec: PipelineSpec, run_id: str, page: bytes | None) -> None:
    """Mirror a run that has ended and the refs that MLflow has otherwise; only warn of errors."""
    with _only_warned(f"run {run_id} is not mirrored to MLflow"):
        runs.record_run(store, load_run(store, run_id), page, spec)
        _mirror_refs(store, _stale_refs(store))


def mirror_move(store: Store, ref: str) -> None:
    """Mirror a ref that was moved, if it points at a model; only warn of errors."""
    with _only_warned(f"{ref} has moved, its MLflow alias not"):
        _mirror_refs(store, [ref] if store.snapshot(ref).contract == MODELS else [])


@contextmanager
def _only_warned(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - MLflow is a mirror: if it is down, warn
        logger.warning("%s, %s: %s", what, LATER, one_line(error))


def mirror(store: Store, *, fix: bool) -> str:
    """Compare MLflow with the store; return what was compared or mirrored.

    Args:
        store: where the truth is.
        fix: mirror what differs.

    Raises:
        VideoARError: they differ and `fix` is False, or MLflow cannot be used.
    """
    try:
        open_runs, refs = runs.unmirrored(store, repair=fix), _stale_refs(store)
        if fix:
            for run in open_runs:
                runs.record_run(store, run, store.objects.find(report_key(run.run_id)))
            _mirror_refs(store, refs)
    except VideoARError:
        raise
    except Exception as error:
        uri = one_line(client.tracking_uri(store))
        hint = "is the server up?" if settings().mlflow_uri else "" if fix else FIX
        raise VideoARError(uri, one_line(error), hint) from error
    parts = ", ".join([f"{len(open_runs)} runs"] * bool(open_runs) + [f"ref {ref}" for ref in refs])
    if parts and not fix:
        where = aliases.registered_name(store)
        raise VideoARError(where, f"MLflow lacks the newest of {parts}", FIX)
    return f"mirrored: {parts}" if parts else "MLflow has all runs and refs"


def _stale_refs(store: Store) -> list[str]:
    """Return the refs of models whose alias points at another snapshot."""
    mirrored = aliases.mirrored_aliases(store)
    heads = {ref: store.refs.head(ref) for ref in store.refs.names()}
    changed = [ref for ref, head in heads.items() if mirrored.get(aliases.alias_of(ref)) != head]
    return [ref for ref in changed if store.snapshot(ref).contract == MODELS]


def _mirror_refs(store: Store, refs: Iterable[str]) -> None:
    def package(model: Snapshot, folder: Path) -> bool:
        from videoar.admin.export_model import export_model  # torch, which a move does not need
        from videoar.admin.model_records import model_row

        row = model_row(model)
        if row["kind"] != "transformer":
            store.fetch_folder(row["files"], folder)
            return False
        export_model(store, model, str(folder), single_file=False)
        return True

    for ref in refs:
        aliases.mirror_ref(store, ref, package)
