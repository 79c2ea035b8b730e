"""The page of a store: what it collects from toy runs, and that text from outside stays text."""

import os
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.html_page import HtmlPage
from tests.support.report_example import HOSTILE, index_example
from tests.support.schedules import FakeLauncher, tick, write_pipeline
from tests.support.toy_runs import execute, toy_run, write_videos
from tests.support.toys import RATED
from videoar import api
from videoar.cli.app import app
from videoar.core.errors import GateError
from videoar.report.data import FolderSize, Index
from videoar.report.index import collect_index
from videoar.report.page import render_index
from videoar.storage.store import Store, open_store

SECTIONS = ["runs", "refs", "schedules", "storage"]


def rated(videos: Path, value: float, steps: int) -> dict:
    ports, rules = {"model": "model", "scores": "scores"}, [{"metric": RATED, "min": 0.5}]
    stages = {
        "model": {"stage": "count", "from": {"sources": "videos"}, "steps": steps},
        "scores": {"stage": "rate", "from": {"model": "model"}, "value": value},
        "gate": {"stage": "promote", "from": ports, "rules": rules},
    }
    return {"pipeline": "rated", "inputs": {"videos": str(videos)}, "stages": stages}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Return a store with three champions, two rollbacks, a blocked run, and a schedule."""
    folder = tmp_path_factory.mktemp("index")
    store = open_store((folder / "store").as_uri())
    videos = write_videos(folder / "videos", "a.mp4", "bad.mp4")
    for value, steps in ((0.6, 2), (0.7, 3)):
        execute(store, rated(videos, value, steps))
    with pytest.raises(GateError):
        execute(store, rated(videos, 0.4, 4))
    api.rollback(store, "champion")
    toy_run(store, write_videos(videos, "b.mp4"))  # its gate has no scores
    api.rollback(store, "champion")
    api.freeze(store, "few", "frozen")
    path = write_pipeline(folder, "nightly", trigger={"cron": "0 3 * * *"}, concurrency="queue")
    noon = datetime.now(UTC).replace(hour=12) - timedelta(days=3)
    for now in (noon, noon + timedelta(days=1)):
        tick(store, path, FakeLauncher(), now)
    return store


@pytest.fixture
def index(store) -> Index:
    return collect(store, 3)


def collect(store: Store, limit: int | None) -> Index:
    now, runs = datetime.now(UTC).timestamp(), api.ls(store, limit)
    schedules = api.schedule_ls(store)
    return collect_index(store, limit, runs=runs, schedules=schedules, now=now, links="")


def test_runs_are_newest_first_with_what_they_made_and_why_they_ended(index):
    assert (len(index.runs), index.num_runs) == (3, 4)
    last, blocked, promoted = index.runs
    assert (last.pipeline, blocked.status) == ("toy", "GATE_BLOCKED")
    assert dict(last.made) == {"big": 2, "few": 2, "model": 1, "gate": 1}
    assert last.moved == ("champion 3",)
    assert f"gate gate: {RATED} >= 0.5" in blocked.reason
    assert promoted.moved == ("champion 1",)
    assert blocked.moved == ()


def test_champions_have_the_scores_of_their_gates_over_time(store):
    index = collect(store, None)
    champions = [entry for entry in index.entries if entry.ref == "champion"][::-1]
    assert [entry.seq for entry in champions] == [0, 1, 2, 3, 4]
    first, second, back, _unscored, again = champions
    assert (back.why, back.run) == (f"rolled back from {second.target}", "")
    assert first.target == back.target == again.target
    values = [[score.value for score in entry.scores] for entry in champions]
    assert values == [[0.6], [0.7], [0.6], [], [0.6]]
    assert store.snapshot(second.evidence).contract == "releases@1"
    (curve,) = index.score_curves
    assert (curve.title, curve.unit) == (f"champion: {RATED}", "no unit")
    minutes = [(entry.at - first.at) / 60 for entry in champions]
    lines = curve.series["champion"], curve.series["champion (2)"]
    assert [y for line in lines for _, y in line] == [0.6, 0.6, 0.7, 0.7, 0.6, 0.6, 0.6, 0.6]
    spans = [[x for x, _ in line[i : i + 2]] for line in lines for i in range(0, len(line), 2)]
    held = [pytest.approx(list(pair)) for pair in pairwise(minutes[:4])]
    assert spans[:3] == held  # the score of the fourth is not known
    assert spans[3][0] == pytest.approx(minutes[4])
    assert spans[3][1] > minutes[4]
    frozen = next(entry for entry in index.entries if entry.ref == "frozen")
    assert (frozen.is_model, frozen.why, frozen.scores) == (False, "frozen", ())


def test_schedules_have_next_and_due_windows(index):
    (nightly,) = index.schedules
    assert (nightly.trigger, nightly.concurrency) == ("0 3 * * * UTC", "queue")
    assert nightly.next.endswith(" 03:00 UTC")
    assert nightly.missed in {1, 2}  # of the days since the last tick, by the hour of the test
    assert nightly.last_run


def test_storage_counts_the_newest_snapshot_and_files_of_all_once(store, index):
    sizes = {item.name: item for item in index.datasets}
    model = sizes["model"]
    assert (model.num_snapshots, model.rows, model.added_rows) == (4, 1, 0)
    assert sum(entry.ref == "champion" for entry in index.entries) == 3  # as many as runs
    assert model.written_bytes > model.size_bytes
    assert (sizes["big"].num_snapshots, sizes["big"].added_rows) == (1, None)
    root = Path(store.objects.location("format.json")).parent
    files = [path for path in root.rglob("*") if path.is_file()]
    assert sum(item.num_files for item in index.folders) == len(files)
    assert sum(item.size_bytes for item in index.folders) == sum(map(os.path.getsize, files))
    (growth,) = index.growth
    assert growth.series["model"][-1][1] == pytest.approx(model.written_bytes / 1e6)


def test_page_of_the_store_has_every_section_and_no_external_url(index):
    page = HtmlPage(render_index(index))
    assert page.open_tags == []
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    assert all(url.startswith(("#", "data:", "runs/")) for url in page.urls())


def test_page_of_an_empty_store_has_no_sections():
    page = HtmlPage(render_index(Index(url="memory://x", rendered_at="now")))
    assert "The store is empty." in page.text
    assert not [tag for tag, _ in page.tags if tag in {"section", "table"}]


def test_page_shows_text_from_outside_as_text():
    page = HtmlPage(render_index(index_example()))
    assert page.open_tags == []
    assert page.text.count(HOSTILE) >= 25
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (-1500, "-1.5 kB"), (99_949, "99.9 kB"),
        (999_499, "999 kB"), (999_999, "1 MB"), (12_345_678, "12.3 MB"), (3e9, "3 GB"),
        (4.2e16, "42,000 TB"),
    ],
)  # fmt: skip
def test_page_shows_sizes_with_three_digits_and_a_unit(num_bytes, text):
    folder = FolderSize(name="x", num_files=7, size_bytes=int(num_bytes))
    data = index_example().model_copy(update={"folders": (folder,)})
    assert f"x7{text}" in "".join(HtmlPage(render_index(data)).text.split("\n"))


def test_verb_writes_the_page_into_the_store_or_a_file_with_links_that_open(store, tmp_path):
    def call(*arguments: str):
        command = ["--store", store.url, "report", "--index", *arguments]
        return CliRunner().invoke(app, command, standalone_mode=False)

    run_id = api.ls(store, 1)[0].run_id
    api.report(store, run_id)
    for arguments, base in (([], ""), (["--out", str(tmp_path / "x.html")], f"{store.url}/")):
        path = call(*arguments, "--limit", "1").stdout.strip()
        links = [url for url in HtmlPage(Path(path).read_text("utf-8")).urls() if "runs/" in url]
        assert links == [f"{base}runs/{run_id}/report.html"]
    assert call("last").exception.exit_code == 2
