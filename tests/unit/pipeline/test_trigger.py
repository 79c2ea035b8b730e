"""Trigger, concurrency and hooks of a pipeline file: cron windows by the clock, clear mistakes."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.toys import REGISTRY
from videoar.pipeline.mistakes import SpecError
from videoar.pipeline.spec import load_pipeline
from videoar.pipeline.trigger import Trigger

TOY = """
pipeline: toy
inputs: {videos: folder, old: "ref://old"}
stages:
  big: {stage: upper, from: {sources: videos}}
"""


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("trigger: {corn: '0 3 * * *'}", "trigger.corn", "did you mean cron?"),
        ("trigger: {cron: '0 25 * * *'}", "trigger.cron", "no cron expression: bad hour"),
        ("trigger: {cron: '0 3 * * * *'}", "trigger.cron", "has five fields"),
        ("trigger: {cron: '0 0 30 2 *'}", "trigger.cron", "no cron expression"),
        ("trigger: {cron: 3}", "trigger.cron", "must be text"),
        ("trigger: {cron: '0 3 * * *', time_zone: Berlin}", "trigger.time_zone", "Europe/Berlin"),
        ("trigger: {cron: '0 3 * * *', time_zone: ../x}", "trigger.time_zone", "Europe/Berlin"),
        ("trigger: {}", "trigger", "needs exactly one of cron, new_sources, new_snapshot"),
        ("trigger: {cron: '0 3 * * *', missed: lates}", "trigger.missed", "did you mean latest?"),
        ("trigger: {new_sources: {input: video}}", "trigger.new_sources.input", "videos?"),
        ("trigger: {new_sources: {input: old}}", "trigger.new_sources.input", "is not listed"),
        ("trigger: {new_sources: {}}", "trigger.new_sources.input", "missing"),
        ("trigger: {new_snapshot: {dataset: a, ref: b}}", "trigger.new_snapshot", "either"),
        ("trigger: {new_snapshot: {dataset: big}}", "trigger.new_snapshot.dataset", "start the"),
        ("concurrency: forbit", "concurrency", "did you mean forbid?"),
        ("hooks: [{events: [failed]}]", "hooks.0", "needs either url or exec"),
        ("hooks: [{events: [fail], url: 'env:X'}]", "hooks.0.events.0", "did you mean failed?"),
        ("hooks: [{events: [failed], url: 'https://u:p@x/'}]", "hooks.0.url", "without a password"),
        (
            "hooks: [{events: [failed], url: 'env:X', secret: abc}]",
            "hooks.0.secret",
            "must be env:NAME",
        ),
        ("schedule: {}", "schedule", "unknown key"),
    ],
)
def test_mistake_names_its_key(tmp_path: Path, text: str, path: str, message: str):
    file = tmp_path / "toy.yaml"
    file.write_text(TOY + text)
    with pytest.raises(SpecError) as caught:
        load_pipeline(file, (), REGISTRY)
    assert message in {m.path: m.message for m in caught.value.mistakes}[path]


def test_schedule_is_part_of_the_pipeline(tmp_path: Path):
    file = tmp_path / "toy.yaml"
    file.write_text(TOY + "trigger: {new_sources: {input: videos, min_items: 9}}\n")
    schedule = load_pipeline(file, (), REGISTRY).schedule
    assert (schedule.concurrency, schedule.hooks) == ("forbid", ())
    assert schedule.trigger
    assert schedule.trigger.new_sources
    assert schedule.trigger.new_sources.min_items == 9


def test_digest_of_a_pipeline_is_that_of_what_it_does(tmp_path: Path):
    file, digests = tmp_path / "toy.yaml", []
    for text in ("", "trigger: {cron: '0 3 * * *'}\nconcurrency: queue\n", "only_if_new: videos"):
        file.write_text(TOY + text)
        digests.append(load_pipeline(file, (), REGISTRY).digest)
    assert digests[0] == digests[1] != digests[2]


# Clocks change in Berlin on 2026-03-29 at 01:00 and 2026-10-25 at 01:00 UTC, in New York on
# 2026-03-08 at 07:00 and 2026-11-01 at 06:00 UTC.
@pytest.mark.parametrize(
    ("cron", "time_zone", "start", "hours", "windows"),
    [
        ("0 3 * * *", "UTC", "2026-03-28T03:00", 48, ["29T03:00", "30T03:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 48, ["29T01:00", "30T00:30"]),
        ("0,30 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00", 20, ["29T01:00", "29T01:30"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 48, ["25T00:30", "26T01:30"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 20,
         ["25T00:00", "25T00:30", "25T01:00", "25T01:30"]),
        ("30 2 * * *", "America/New_York", "2026-03-07T12:00", 48, ["08T07:00", "09T06:30"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00", 48, ["01T05:30", "02T06:30"]),
        ("0 * * * *", "America/New_York", "2026-11-01T04:30", 4,
         ["01T05:00", "01T06:00", "01T07:00", "01T08:00"]),
    ],
)  # fmt: skip
def test_each_window_comes_once(cron, time_zone, start, hours, windows):
    trigger = Trigger(cron=cron, time_zone=time_zone)
    after = datetime.fromisoformat(start).replace(tzinfo=UTC)
    until = after + timedelta(hours=hours)
    result = list(trigger.windows(after, until))
    assert [f"{window:%dT%H:%M}" for window in result] == windows
    # looked at every ten minutes, the same windows
    steps = [after + timedelta(minutes=10 * i) for i in range(6 * hours + 1)]
    pieces = [w for a, b in pairwise(steps) for w in trigger.windows(a, b)]
    assert pieces == result
