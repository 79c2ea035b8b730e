"""Publish the report page of a run."""

import logging
from collections.abc import Iterable

from videoar.core.errors import VideoARError, one_line
from videoar.records.mlflow.runs import record_run
from videoar.records.run import Run
from videoar.records.run_record import load_run
from videoar.report.collect import collect
from videoar.report.page import render
from videoar.storage.layout import report_key
from videoar.storage.store import Store

logger = logging.getLogger(__name__)


def render_page(store: Store, run_id: str) -> bytes:
    """Return the page of a run; writes nothing."""
    return render(collect(store, load_run(store, run_id))).encode()


def render_report(store: Store, run_id: str) -> tuple[str, bytes]:
    """Render a run's page into the store; return its key and content."""
    key, page = report_key(run_id), render_page(store, run_id)
    # replaced, unlike data: a resumed run or a takedown changes the page
    store.objects.put(key, page)
    return key, page


def publish_page(store: Store, run_id: str) -> bytes | None:
    """Write and return the page of a run; None, with a warning, if it cannot be rendered."""
    try:
        return render_report(store, run_id)[1]
    # only known errors: one in the page's own code must be seen, and the run is recorded already
    except VideoARError as error:
        logger.warning("the report page was not rendered: %s", error)
    return None


def rerender_reports(store: Store, runs: Iterable[Run]) -> None:
    """Render the report pages of runs again, in the store and in MLflow, after data was removed.

    All old pages are deleted before the first one is rendered: rendering may fail or be killed, and
    after a takedown no old page may remain.
    """
    # iterated twice
    runs = list(runs)
    for run in runs:
        store.objects.purge(report_key(run.run_id))
    for run in runs:
        _rerender_report(store, run)


def _rerender_report(store: Store, run: Run) -> None:
    try:
        page = render_report(store, run.run_id)[1]
        record_run(store, run, page)
    except Exception as error:  # noqa: BLE001 - the store's page is deleted; MLflow's may remain
        where = f"run {run.run_id}"
        logger.warning(
            "%s: MLflow may still have the old page, run forget again: %s", where, one_line(error)
        )
