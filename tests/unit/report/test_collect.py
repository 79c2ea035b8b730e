"""`collect` on snapshots whose rows are written by hand."""

import json

import pytest

from tests.support.committed_rows import SHA, RowWriter
from tests.support.html_page import HtmlPage
from tests.support.report_example import HOSTILE
from videoar.records.run import RowCounts, Run, StageRun
from videoar.report.collect import collect
from videoar.report.page import render
from videoar.storage.layout import commit_index_key
from videoar.storage.store import open_store


@pytest.fixture(scope="module")
def data(written):
    store, run, _ = written
    return collect(store, run)


@pytest.fixture(scope="module")
def written():
    store = open_store("memory://report")
    writer = RowWriter(store)
    red, blue, made, recon = (
        store.put_object(name.encode(), ".mp4").key for name in ("red", "blue", "made", "recon")
    )
    sources = [{"uri": f"/v/{i}", "name": f"{i}", "licence": "CC0"} for i in range(4)]
    writer.commit("videos", "sources@1", sources)
    clip = {
        "licence": None,
        "caption": "blue",
        "label": "Ball",
        "video_key": blue,
        "source_id": "cd" * 32,
    }
    clips = [{"clip_id": f"{1:032x}", "caption": "red", "label": None, "video_key": red,
              "licence": "CC0", "origin": "an archive"},
             {"clip_id": f"{2:032x}", **clip}, {"clip_id": f"{3:032x}", **clip}]  # fmt: skip
    rejected = [
        {"item_id": f"{i}", "stage": "clips", "kind": kind, "reasons": reasons}
        for i, (kind, reasons) in enumerate((
            ("source", ["TRUNCATED", "SHORT"]),
            ("clip", ["SHORT"]),
            ("source", ["TRUNCATED"]),
        ))
    ]
    writer.commit("clips", "clips@1", clips, ["videos"], rejected)
    history = [{"step": 1, "train/loss": 0.7, "val/loss": 0.8, "psnr": 20.0},
               {"step": 2, "train/loss": 0.6, "val/frame0/scale0/block_nats": 0.5,
                "val/frame0/scale0/block_accuracy": 0.75, "val/frame1/scale1/block_nats": 0.25,
                "val/frame1/scale1/block_accuracy": 1.0}]  # fmt: skip
    model = {"kind": "transformer", "history_json": json.dumps(history)}
    writer.commit("model", "models@1", [model], ["clips"])
    of_class = "Generate a video of ball"
    prompts = (("red", None, 0), ("red", None, 1), (HOSTILE, None, 0), (of_class, "Ball", 2))
    names = ("prompt", "label", "index")
    samples = [
        {
            "sample_id": f"{i:032x}",
            "video_key": made,
            "seed": i,
            **dict(zip(names, row, strict=True)),
        }
        for i, row in enumerate(prompts)
    ]
    writer.commit("samples", "samples@1", samples, ["model"])
    example = {"clip_id": f"{1:032x}", "real_key": red, "recon_key": recon}
    steps = [{"clip_id": f"{1:032x}", "grid": grid, "recon_key": key}
             for grid, key in (("1 x 1", made), ("4 x 4", recon))]  # fmt: skip
    confusion = {"red": {"red": 3, "none": 1}, "blue": {"red": 1, "none": 0}}
    details = {
        "recon/psnr": {"examples": [example], "by_scale": steps},
        "rendered/colour_acc": {"confusion": confusion},
    }
    scores = [
        {"metric": metric, "value": 0.5, "details_json": json.dumps(details[metric]),
         "lock_json": json.dumps({"metric": metric, "num_samples": 3}), "lock_digest": metric}
        for metric in details
    ]  # fmt: skip
    writer.commit("scores", "scores@1", scores, ["samples", "clips"])
    rule = {
        "rule": "a >= 1",
        "value": None,
        "bound": 1.0,
        "passed": False,
        "reason": "no such score",
    }
    writer.commit("release", "releases@1", [rule], ["model", "scores"])
    return store, _run(writer.ids), writer


def _run(ids) -> Run:
    ports = {"clips": ["videos"], "model": ["clips"], "samples": ["model"],
             "scores": ["samples", "clips"], "release": ["model", "scores"]}  # fmt: skip
    stages = [
        StageRun(name=name, type=name, status="SUCCEEDED", snapshot=ids[name], seconds=1.0,
                 rejects=ids.get(f"{name}.rejects"), rows=RowCounts(in_=4, out=3),
                 inputs={port: ids[port] for port in wanted})
        for name, wanted in ports.items()
    ]  # fmt: skip
    late = StageRun(name="late", type="promote")
    document = {
        "pipeline": "p",
        "inputs": {"videos": "/v"},
        "stages": {
            **{n: {"stage": n, "from": {p: p for p in wanted}} for n, wanted in ports.items()},
            "late": {"stage": "promote", "from": {"model": "model"}, "ref": "champion"},
        },
    }
    return Run(
        run_id="r1", pipeline="p", status="GATE_BLOCKED", started_at=0.0, seconds=9.0,
        code_version="0", pipeline_digest=SHA, document=document, source="p.yaml",
        stages=(*stages, late), outputs={name: ids[name] for name in ports},
    )  # fmt: skip


def test_collect_stages_are_inputs_and_stages_with_parents(data):
    boxes = {box.name: box for box in data.stages}
    assert list(boxes) == ["videos", "clips", "model", "samples", "scores", "release", "late"]
    assert (boxes["videos"].rows_out, boxes["videos"].kind) == (4, "input")
    assert boxes["scores"].parents == ("samples", "clips")
    assert (boxes["late"].status, boxes["late"].rows_out) == ("PENDING", None)


def test_collect_funnel_counts_decisive_reasons(data):
    assert [(step.name, step.unit, step.count) for step in data.funnel] == [
        ("videos", "videos", 4), ("clips", "videos", 1), ("clips", "clips", 3),
    ]  # fmt: skip
    reasons = [step.reasons for step in data.funnel]
    assert reasons == [(), (("TRUNCATED", 2),), (("SHORT", 1),)]


def test_collect_samples_are_paired_with_real_clips_of_their_prompt(data):
    assert [(g.text, g.note, *(c.video for c in g.clips)) for g in data.generated] == [
        ("red", "seed 0", b"made", b"red"), (HOSTILE, "seed 2", b"made", None),
        ("red", "seed 1", b"made", b"red"),
        ("Generate a video of ball", "seed 3", b"made", b"blue"),
    ]  # fmt: skip
    (pair,) = data.reconstructions
    assert [(c.label, c.video) for c in pair.clips] == [
        ("real", b"red"), ("reconstruction", b"recon"),
    ]  # fmt: skip
    (series,) = data.scale_series
    assert series.note == f"{1:032x}"
    assert [(c.label, c.video) for c in series.clips] == [
        ("up to 1 x 1", b"made"), ("up to 4 x 4", b"recon"), ("real", b"red"),
    ]  # fmt: skip


def test_collect_curves_of_one_quantity_share_a_panel(data):
    loss, psnr = sorted(data.curves, key=lambda curve: curve.title)
    assert loss.series == {"train/loss": ((1, 0.7), (2, 0.6)), "val/loss": ((1, 0.8),)}
    assert (psnr.title, psnr.series) == ("model: psnr", {"psnr": ((1, 20.0),)})


def test_collect_blocks_are_a_table_of_the_last_evaluation(data):
    (table,) = data.blocks
    assert (table.title, table.step) == ("model: held-out blocks, clean history", 2)
    assert table.cells == (((0.5, 0.75), None), (None, (0.25, 1.0)))


def test_collect_scores_have_locks_gate_and_confusion(data):
    assert [score.metric for score in data.scores] == ["recon/psnr", "rendered/colour_acc"]
    (lock,) = data.locks
    assert list(lock.metrics) == ["recon/psnr", "rendered/colour_acc"]
    assert json.loads(lock.text) == {"num_samples": 3}
    (table,) = data.confusions
    assert (table.prompted, table.predicted, table.counts) == (
        ("red", "blue"), ("red", "none"), ((3, 1), (1, 0)),
    )  # fmt: skip
    (gate,) = data.gates
    assert not gate.rules[0].passed


def test_collect_lineage_ends_at_sources_with_licences(data):
    stages = {node.stage: node for node in data.lineage}
    assert data.lineage[0].stage == "release"
    assert stages.keys() == {"release", "scores", "samples", "model", "clips", "videos"}
    found = {(licence.name, licence.origin): licence.num_videos for licence in data.licences}
    assert found == {("CC0", "an archive"): 1, ("not stated", "not stated"): 1}


def test_render_collected_data_has_config_and_escapes_prompts(data):
    page = render(data)
    assert "ref: champion" in page
    assert HOSTILE not in page


@pytest.mark.parametrize(
    ("victim", "sections"),
    [
        ("clips", {"filtering", "videos", "lineage"}),
        ("samples", {"videos"}),
        ("scores", {"scores"}),
        ("model", {"training"}),
        ("release", {"verdict", "scores"}),
        ("clips.rejects", {"filtering"}),
    ],
)
def test_collect_of_damaged_rows_names_the_key_in_its_sections_only(written, victim, sections):
    store, run, writer = written
    key = store.snapshot(writer.ids[victim]).files[0].key
    whole = store.objects.get(key)
    store.objects.put(key, whole[: len(whole) // 2])
    try:
        damaged = collect(store, run)
    finally:
        store.objects.put(key, whole)
    assert damaged.damage.keys() == sections
    assert all(key in line for lines in damaged.damage.values() for line in lines)
    assert HtmlPage(render(damaged)).text.count(key) == len(sections)
    assert collect(store, run).damage == {}


def test_collect_shows_a_damaged_video_as_its_label(written):
    store, run, writer = written
    key = store.snapshot(writer.ids["samples"]).table().to_pylist()[0]["video_key"]
    whole = store.objects.get(key)
    store.objects.put(key, b"other")
    label = collect(store, run).generated[0].clips[0].label
    store.objects.put(key, whole)
    assert key in label
    assert "damaged" in label


def test_collect_of_a_damaged_commit_record_leaves_its_snapshot_out(written):
    store, run, writer = written
    dataset, _, digest = writer.ids["model"].partition(":")
    key = commit_index_key(dataset, f"digest-{digest}")
    whole = store.objects.get(key)
    store.objects.put(key, whole.replace(b"version", b"verzion"))
    damaged = collect(store, run)
    store.objects.put(key, whole)
    assert all(key in line for lines in damaged.damage.values() for line in lines)
    assert "pipeline" in damaged.damage
    assert not damaged.curves
    assert damaged.scores
