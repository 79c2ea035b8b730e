"""Events of a run for lineage catalogues, parsed by the classes of the specification."""

import inspect
import json
from datetime import datetime

import attr
import pytest
from openlineage.client import facet_v2
from openlineage.client.generated import base
from typer.testing import CliRunner

from tests.support.toy_runs import toy_run, write_videos
from tests.support.toys import REGISTRY
from videoar import api
from videoar.cli.app import app
from videoar.core.errors import VideoARError
from videoar.pipeline.spec import parse_pipeline
from videoar.records.openlineage import openlineage
from videoar.records.run import StageRun
from videoar.records.run_log import RunLog
from videoar.records.run_record import load_run
from videoar.storage.store import Store

FACETS = {
    cls._get_schema(): cls
    for module in (base, *(getattr(facet_v2, name) for name in facet_v2.__all__))
    if inspect.ismodule(module)
    for cls in vars(module).values()
    if inspect.isclass(cls) and issubclass(cls, base.BaseFacet)
}


@pytest.fixture
def store(tmp_path) -> Store:
    return api.open_store((tmp_path / "store").as_uri())


@pytest.fixture
def videos(tmp_path):
    return write_videos(tmp_path / "videos", "a.mp4", "bad.mp4")


def parse(event: dict) -> base.RunEvent:
    """Build the classes of the specification: unknown, missing and malformed fields raise."""
    event = json.loads(json.dumps(event))
    assert event.pop("schemaURL") == base.RunEvent._get_schema()
    for key, cls in (("run", base.Run), ("job", base.Job)):
        event[key] = cls(**(event[key] | {"facets": facets(event[key]["facets"])}))
    for key, cls in (("inputs", base.InputDataset), ("outputs", base.OutputDataset)):
        event[key] = [
            cls(**{k: facets(v) if k.lower().endswith("facets") else v for k, v in one.items()})
            for one in event.get(key, ())
        ]
    return base.RunEvent(**event | {"eventType": base.EventType(event["eventType"])})


def facets(given: dict[str, dict]) -> dict[str, base.BaseFacet]:
    return {name: facet(dict(fields)) for name, fields in given.items()}


def facet(fields: dict) -> base.BaseFacet:
    assert fields.pop("_producer").startswith("pkg:pypi/videoar@")
    cls = FACETS[fields.pop("_schemaURL")]
    if cls is base.RunFacet:
        return cls().with_additional_properties(**fields)
    known = {field.name for field in attr.fields(cls)}
    assert fields.keys() <= known
    return cls(**fields)


def events_of(store: Store, name: str) -> list[base.RunEvent]:
    events = [parse(event) for event in openlineage(store, name)]
    times = [datetime.fromisoformat(event.eventTime) for event in events]
    assert times == sorted(times)
    assert all(time.tzinfo for time in times)
    return events


def kinds(events: list[base.RunEvent]) -> list[tuple[str, str]]:
    return [(event.job.name, event.eventType.value) for event in events]


def both(*names: str, end: str = "COMPLETE") -> list[tuple[str, str]]:
    return [(name, kind) for name in names for kind in ("START", end)]


def test_events_of_a_run_nest_its_stages_and_name_versions_of_datasets(store, videos):
    run = toy_run(store, videos)
    events = events_of(store, run.run_id)
    inner = both("toy.videos", "toy.big", "toy.few", "toy.model", "toy.gate")
    assert kinds(events) == [("toy", "START"), *inner, ("toy", "COMPLETE")]
    parent = events[0]
    assert {e.run.facets["parent"].run["runId"] for e in events[1:-1]} == {parent.run.runId}
    assert "\npipeline: toy\n" in parent.job.facets["sourceCode"].sourceCode
    listing, big = events[2], events[4]
    (folder,) = listing.inputs
    assert (folder.namespace, folder.name) == ("file", str(videos))
    assert listing.outputs[0].facets["version"] == big.inputs[0].facets["version"]
    made, rejected = big.outputs
    assert (made.namespace, made.name, rejected.name) == (store.url, "big", "big.rejects")
    assert made.facets["version"].datasetVersion == run.outputs["big"]
    assert made.facets["dataSource"].uri == f"{store.url}/tables/big"
    assert {field["name"] for field in made.facets["schema"].fields} >= {"uri", "licence"}
    files = store.snapshot(run.outputs["big"]).files
    statistics = made.outputFacets["outputStatistics"]
    assert (statistics.rowCount, statistics.fileCount) == (1, len(files))
    assert statistics.size == sum(file.size_bytes for file in files)
    assert big.run.facets["videoar_run"].status == "SUCCEEDED"
    again = [e.run.runId for e in events_of(store, run.run_id)]
    assert again == [e.run.runId for e in events]
    other = toy_run(store, videos)
    cached = events_of(store, other.run_id)
    assert kinds(cached) == kinds(events)
    assert cached[4].run.facets["videoar_run"].status == "CACHED"
    assert not {e.run.runId for e in cached} & set(again)


@pytest.mark.parametrize(
    ("options", "stages", "end"),
    [
        ({"gate": {"bound": 2.0}}, [*both("toy.model"), *both("toy.gate", end="FAIL")], "FAIL"),
        ({"model": {"at_most": 1}}, both("toy.model", end="FAIL"), "FAIL"),
    ],
)
def test_events_of_a_run_that_ended_early_have_the_error(store, videos, options, stages, end):
    with pytest.raises(VideoARError):
        toy_run(store, videos, **options)
    run = api.status(store)
    events = events_of(store, "last")
    expected = [("toy", "START"), *both("toy.videos", "toy.big", "toy.few"), *stages, ("toy", end)]
    assert kinds(events) == expected
    for event in (e for e in events if e.eventType is base.EventType.FAIL):
        assert event.run.facets["errorMessage"].message == run.error
        assert event.run.facets["videoar_run"].code == run.code


@pytest.mark.parametrize(
    ("finish", "stage_end", "end"),
    [(None, "ABORT", "ABORT"), ("CANCELLED", "ABORT", "ABORT"), ("UNKNOWN", None, None)],
)
def test_events_of_a_run_that_was_stopped(store, videos, finish, stage_end, end):
    listed = toy_run(store, videos).stage("big").inputs
    document = api.status(store).document
    log = RunLog(store, "run9", lambda: None)
    log.create(parse_pipeline(document, "toy.yaml", REGISTRY), "0", None, None)
    log.driver({}, ())
    stage = StageRun(name="big", type="upper", status="RUNNING", inputs=listed, started_at=1e9)
    log.stage(stage)
    if finish:
        log.stage(stage.model_copy(update={"status": finish}))
        log.finish(finish, None)
    assert load_run(store, "run9").status == (finish or "INTERRUPTED")
    ends = [("toy.big", stage_end), ("toy", end)]
    found = kinds([parse(event) for event in openlineage(store, "run9")])
    assert found == [("toy", "START"), ("toy.big", "START"), *((n, k) for n, k in ends if k)]


def test_verb_prints_a_line_per_event_and_refuses_what_is_no_run(store, videos):
    run = toy_run(store, videos)

    def call(*arguments: str):
        command = ["--store", store.url, "lineage", *arguments, "--format", "openlineage"]
        return CliRunner().invoke(app, command, standalone_mode=False)

    lines = call(run.run_id).stdout.splitlines()
    assert [json.loads(line) for line in lines] == list(openlineage(store, run.run_id))
    for arguments in (["zzz"], [run.run_id, "--down"]):
        assert call(*arguments).exception.exit_code == 2
