"""Ingest of small files, good and bad: every source ends once, equal inputs give equal bytes."""

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.support.stage_chain import ingest
from videoar.media.decode import decode_clip
from videoar.media.transcode import encode
from videoar.report.collect import funnel
from videoar.stages.ingest.config import IngestConfig
from videoar.stages.ingest.stage import IngestStage, group_rows
from videoar.storage.store import open_store

OPTIONS = {"rate_fps": None, "size_px": 32, "sources_per_shard": 2}


def moving(seed, num_frames=20):
    cells = np.random.default_rng(seed).integers(0, 256, (6, 24, 3)).astype(np.uint8)
    wide = cells.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(wide, 2 * t, 1)[:, :64] for t in range(num_frames)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        encode(moving(seed), folder / f"good{seed}.mp4", 12.0)
    encode(moving(9, 5), folder / "short.mp4", 12.0)
    data = (folder / "good0.mp4").read_bytes()
    (folder / "good0-copy.mp4").write_bytes(data)
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<html>403</html>")
    (folder / "list.mp4").write_text(f"#EXTM3U\nfile://{folder}/good0.mp4\n")
    (folder / "folder.mp4").mkdir()
    (folder / "lost.mp4").symlink_to("nowhere")
    (folder / "labels.csv").write_text(
        "file,label,label_text,split,group\ngood1.mp4,right,moving right,val,g\n"
    )
    return folder


@pytest.fixture(scope="module")
def outcome(folder, tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    clips, metrics = ingest(store, str(folder), **OPTIONS)
    return store, clips, metrics


def test_every_source_ends_as_clips_or_as_a_typed_reject(outcome):
    _, clips, metrics = outcome
    reasons = {row["item_id"]: row["reasons"][0] for row in clips.rejects().table().to_pylist()}
    copies = {"good0.mp4", "good0-copy.mp4"}
    assert {name: reasons[name] for name in reasons if name not in copies} == {
        "short.mp4": "TOO_SHORT",
        "cut.mp4": "TRUNCATED",
        "empty.mp4": "EMPTY",
        "page.mp4": "NOT_VIDEO",
        "list.mp4": "PLAYLIST",
        "folder.mp4": "IO_PERMANENT",
        "lost.mp4": "IO_PERMANENT",
    }
    kept = set(clips.table(["source_name"])["source_name"].to_pylist())
    assert kept | set(reasons) == copies | {"good1.mp4", "good2.mp4"} | set(reasons)
    assert metrics["sources"] == metrics["sources_kept"] + metrics["sources_rejected"] == 11


def test_what_a_source_has_beyond_its_clips_is_counted_and_on_the_page(outcome, folder):
    store, *_ = outcome
    # one shard: whether the copies meet in one depends on the address of the folder
    few = {"num_frames": 5, "max_clips_per_source": 1, "sources_per_shard": 10**9}
    options = {**OPTIONS, **few}
    clips, metrics = ingest(store, str(folder), **options)
    counts = (metrics["clips"], metrics["clips_left_out"], metrics["sources_with_more_clips"])
    assert counts == (4, 9, 3)
    (*_, step) = funnel(store, {"clips": clips}, {"clips": None})
    assert step.left_out.startswith("left out: 9, of 3 videos with more than max_clips_per_source")


def test_clips_are_stored_with_the_columns_of_their_source(outcome):
    store, clips, _ = outcome
    row = next(r for r in clips.table().to_pylist() if r["source_name"] == "good1.mp4")
    expected = {"label": "right", "caption": "moving right", "caption_source": "labels"}
    expected |= {"split": "val", "num_frames": 17, "width_px": 32, "rate_fps": 12.0}
    assert {key: row[key] for key in expected} == expected
    frames = decode_clip(store.objects.get(row["video_key"]))
    assert frames.shape == (17, 32, 32, 3)


@pytest.mark.slow
def test_same_bytes_for_any_number_of_runs_and_store(outcome, folder, tmp_path):
    _, clips, _ = outcome
    again, _ = ingest(open_store(tmp_path.as_uri()), str(folder), **OPTIONS)
    assert again.digest == clips.digest
    assert again.rejects().digest == clips.rejects().digest


def test_clip_id_does_not_depend_on_the_path(outcome, folder, tmp_path):
    _, clips, _ = outcome
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "other.mp4").write_bytes((folder / "good2.mp4").read_bytes())
    moved, _ = ingest(open_store(tmp_path.as_uri()), str(tmp_path / "in"), **OPTIONS)
    (clip_id,) = moved.table(["clip_id"])["clip_id"].to_pylist()
    assert clip_id in clips.table(["clip_id"])["clip_id"].to_pylist()


@dataclass
class Rows:
    """Stands for a snapshot of `sources@1`."""

    rows: list[dict]

    def read(self):
        yield self.table()

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows)


def test_new_source_changes_one_group():
    rows = [{"uri": f"file:///{i:04d}.mp4", "size_bytes": 10} for i in range(400)]
    before = [tuple(r["uri"] for r in group) for group in group_rows(rows, 8, 100)]
    more = sorted(
        [*rows, {"uri": "file:///0200a.mp4", "size_bytes": 10}], key=lambda row: row["uri"]
    )
    after = [tuple(r["uri"] for r in group) for group in group_rows(more, 8, 100)]
    assert sum(map(len, before)) == 400
    assert len(set(before) - set(after)) == 1
    assert len(set(after) - set(before)) <= 2
    assert max(map(len, before)) <= 32


def test_batch_in_a_folder_of_its_own_changes_no_shard_of_others():
    def shards(*batches: str) -> set[str]:
        names = [f"{batch}/{i}.mp4" for batch in batches for i in range(20)]
        rows = [{"uri": f"file:///in/{n}", "name": n, "size_bytes": 10} for n in names]
        stage = IngestStage(IngestConfig(sources_per_shard=8, batch_folders=True))
        return {shard.digest for shard in stage.shards({"sources": Rows(rows)})}

    two, three = shards("b1", "b3"), shards("b1", "b2", "b3")
    assert two < three
    assert three - two == shards("b2")


@pytest.mark.slow
def test_long_source_is_read_in_parts_by_many_workers(tmp_path):
    (tmp_path / "in").mkdir()
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (200, 96, 96, 3)).astype(np.uint8)
    encode(noise, tmp_path / "in" / "long.mp4", 10.0, crf=10)
    encode(moving(1), tmp_path / "in" / "short.mp4", 12.0)
    size_mib = (tmp_path / "in" / "long.mp4").stat().st_size / 2**20
    assert 1 < size_mib < 4
    options = {**OPTIONS, "find_shots": False, "part_mib": 1, "max_clips_per_source": 100}
    clips, metrics = ingest(open_store((tmp_path / "s").as_uri()), str(tmp_path / "in"), **options)
    parts = int(np.ceil(size_mib))
    assert metrics["sources"] == metrics["sources_kept"] == parts + 1
    rows = [r for r in clips.table().to_pylist() if r["source_name"] == "long.mp4"]
    spans = sorted((r["span_start_us"], r["span_end_us"]) for r in rows)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))
    assert len(spans) >= 200 // 17 - parts  # each part loses less than a clip at its end
    again, _ = ingest(
        open_store((tmp_path / "t").as_uri()), str(tmp_path / "in"), workers=2, **options
    )
    assert again.digest == clips.digest


def test_invalid_options_are_rejected():
    with pytest.raises(ValidationError, match="not 1 \\+ 4m"):
        IngestConfig(num_frames=16)
    assert "scan_timeout_s" not in IngestConfig().semantic()
    for size_px in (15, 33, 4096, "big", [], [64], [[64]], [[64, 33]], [[64, 64], [8, 64]]):
        with pytest.raises(ValidationError, match=r"is neither an even side of 16 to 2048 px, nor"):
            IngestConfig(size_px=size_px)
    assert IngestConfig(size_px=32).clip_options == {
        "num_frames": 17, "rate_fps": 8.0, "size_px": 32, "find_shots": True, "crf": 12
    }  # fmt: skip
    sizes = [[64, 64], [48, 84]]
    assert IngestConfig(size_px=sizes).semantic()["size_px"] == sizes


@pytest.mark.slow
def test_list_of_sizes_changes_only_the_clips_of_other_size(outcome, folder, tmp_path):
    _, square, _ = outcome
    (tmp_path / "in").mkdir()
    for name in ("good1.mp4", "good2.mp4"):
        (tmp_path / "in" / name).write_bytes((folder / name).read_bytes())
    encode(moving(7)[:, :24].repeat(2, 2), tmp_path / "in" / "wide.mp4", 12.0)
    store = open_store((tmp_path / "store").as_uri())
    options = {**OPTIONS, "size_px": [[32, 32], [24, 48]]}
    clips, _ = ingest(store, str(tmp_path / "in"), **options)
    rows = {row["source_name"]: row for row in clips.table().to_pylist()}
    before = {row["source_name"]: row for row in square.table().to_pylist()}
    for name in ("good1.mp4", "good2.mp4"):
        assert [rows[name][key] for key in ("clip_id", "video_sha256")] == [
            before[name][key] for key in ("clip_id", "video_sha256")
        ]
    wide = rows["wide.mp4"]
    assert (wide["height_px"], wide["width_px"]) == (24, 48)
    assert decode_clip(store.objects.get(wide["video_key"])).shape == (17, 24, 48, 3)
    alone, _ = ingest(
        open_store((tmp_path / "alone").as_uri()), str(tmp_path / "in"), **OPTIONS | {"size_px": 32}
    )
    assert wide["clip_id"] not in alone.table(["clip_id"])["clip_id"].to_pylist()


def test_split_is_drawn_by_group():
    from videoar.stages.ingest.worker import _source_columns

    base = dict.fromkeys(("label", "caption", "caption_source", "licence", "origin", "split"))
    splits = [
        _source_columns({**base, "group": f"g{i}", "uri": "u", "name": "n"}, "0" * 64, 0.15)[
            "split"
        ]
        for i in range(2000)
    ]
    assert 0.12 < splits.count("val") / 2000 < 0.18
    assert pa.array(splits).null_count == 0
