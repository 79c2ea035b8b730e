"""A takedown through the command line: of a trained and reported chain, and on a folder."""

import base64
import json
from pathlib import Path

import boto3
import pytest

from tests.support.s3_server import S3Server, make_bucket
from tests.support.small_pipeline import PIPELINE, ROOT, STAGES, sets, videoar
from tests.support.small_videos import draw, sha
from tests.support.stored_text import holds
from videoar.core.errors import WithdrawnError
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
ARGUMENTS = sets("stages.evalset.reference_split=train")
"""Without the source that is taken down, the other split has one clip left."""
CURATE = str(ROOT / "pipelines" / "curate.yaml")


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> dict:
    store = (tmp_path_factory.mktemp("takedown") / "store").as_uri()
    return {"store": store, **videoar("run", str(PIPELINE), *ARGUMENTS, store=store)}


def sources(first: dict, name: str) -> dict[str, dict]:
    graph = videoar("lineage", first["outputs"][name], store=first["store"])
    return {node["sha256"]: node for node in graph["nodes"] if node["kind"] == "source"}


def test_lineage_of_models_and_samples_ends_at_sources_with_licence_and_origin(first: dict):
    for name in ("model", "samples", "scores"):
        found = sources(first, name)
        assert found
        assert all(node["licence"] and node["origin"] for node in found.values())


def example_of(first: dict) -> dict:
    """Return the round trip that the report shows: a clip and its reconstruction."""
    return shown(first, "examples")[0]


def shown(first: dict, name: str) -> list[dict]:
    scores = videoar("show", first["outputs"]["scores"], "--rows", "99", store=first["store"])
    details = [json.loads(row["details_json"]) for row in scores["first_rows"]]
    return next(detail[name] for detail in details if detail.get(name))


def source_of(first: dict, example: dict) -> str:
    clips = open_store(first["store"]).snapshot(first["outputs"]["good"]).table().to_pylist()
    return next(row["source_id"] for row in clips if row["clip_id"] == example["clip_id"])


def test_forget_lists_derived_snapshots_and_the_next_run_succeeds(first: dict):
    store = first["store"]
    folder = Path(store.removeprefix("file://"))
    example = example_of(first)
    source = source_of(first, example)
    page = folder / "runs" / first["run_id"] / "report.html"
    before = page.read_bytes()
    steps = [step for step in shown(first, "by_scale") if step["clip_id"] == example["clip_id"]]
    assert len(steps) == 3
    keys = {example["real_key"], example["recon_key"], *(step["recon_key"] for step in steps)}
    videos = [folder / key for key in keys]
    shown_as = [base64.b64encode(video.read_bytes()) for video in videos]
    assert all(text in before for text in shown_as)

    asked = videoar("forget", "--source", source, "--dry-run", store=store)
    assert page.read_bytes() == before
    found = videoar("forget", "--source", source, "--reason", "its owner asks", store=store)
    assert (found["deleted"], found["derived"]) == (asked["deleted"], asked["derived"])
    assert found["reason"] == "its owner asks"
    kinds = {entry["dataset"]: entry["holds_content"] for entry in found["derived"]}
    own = ("clips", "good", "tokens", "evalset", "reference_features")
    assert kinds == {name: name in own for name in STAGES}
    assert found["pages"] == [first["run_id"]]
    assert not any(video.exists() for video in videos)
    copies = [page, *(folder / "mlflow-artifacts").rglob("report.html")]
    assert len(copies) == 2
    assert not any(text in copy.read_bytes() for text in shown_as for copy in copies)

    champions = [entry["dataset"] for entry in found["derived"] if "champion" in entry["refs"]]
    assert champions == ["model"]

    with pytest.raises(WithdrawnError, match=f"withdrawn by the takedown of source {source}"):
        open_store(store).snapshot(first["outputs"]["tokens"]).table()
    assert sources(first, "model")[source]["forgotten"]
    assert videoar("show", first["outputs"]["model"], store=store)["rows"] == 1

    blocked = videoar("run", str(PIPELINE), *ARGUMENTS, store=store, code=4)
    assert f"evaluation set quickstart: its source {source} was taken down" in blocked["stderr"]
    another = ["inputs.frozen=ref://second?optional=true", "stages.evalset.pin=second"]
    second = videoar("run", str(PIPELINE), *ARGUMENTS, *sets(base=another), store=store)
    state = {stage["name"]: stage for stage in second["stages"]}
    assert second["inputs"]["videos"]["gone"] == 1
    counts = state["clips"]["shards"]
    assert (counts["cached"], counts["done"]) == (counts["planned"] - 1, 1)
    assert counts["cached"] >= 1
    assert state["tokenizer"]["status"] == state["model"]["status"] == "SUCCEEDED"
    assert source not in sources(second | {"store": store}, "model")
    later = videoar("forget", "--source", source, store=store)["derived"]
    known = {entry["id"] for entry in found["derived"]}
    assert known <= {entry["id"] for entry in later}
    # the old champion has seen it, and was scored for the second run
    added = {entry["dataset"] for entry in later if entry["id"] not in known}
    assert added == {"champion_samples", "champion_scores", "release"}
    # the new champion has never seen it
    assert [entry["refs"] for entry in later if entry["refs"]] == [["quickstart"]]


def test_forget_of_a_file_of_a_folder_rejects_its_copies(tmp_path: Path):
    store, videos = (tmp_path / "store").as_uri(), tmp_path / "videos"
    videos.mkdir()
    for seed, name in enumerate("abc"):
        draw(videos / f"{name}.mp4", seed)
    draw(videos / "short.mp4", 9, num_frames=5)
    options = ["--set", f"inputs.videos={videos}", "--set", "stages.good.policy=permissive"]
    options += ["--set", "stages.clips.rate_fps=null", "--set", "stages.clips.sources_per_shard=1"]
    videoar("run", CURATE, *options, store=store)
    (row,) = videoar("quarantine", "ls", store=store)["rows"]
    assert (row["item_id"], row["reasons"]) == ("short.mp4", ["TOO_SHORT"])
    assert set(row) == {
        "item_id", "kind", "stage", "reasons", "detail", "retryable", "uri", "snapshot",
        "span_start_us", "span_end_us",
    }  # fmt: skip

    source = sha(videos / "a.mp4")
    videoar("forget", "--source", source, store=store)
    (videos / "renamed.mp4").write_bytes((videos / "a.mp4").read_bytes())
    second = videoar("run", CURATE, *options, store=store)
    assert second["inputs"]["videos"] | {"snapshot": ""} == {
        "snapshot": "", "sources": 4, "new": 1, "changed": 0, "gone": 1,
    }  # fmt: skip
    counts = second["stages"][0]["shards"]
    assert (counts["planned"], counts["cached"], counts["done"]) == (4, 3, 1)
    (row,) = videoar("quarantine", "ls", "--reason", "FORGOTTEN", store=store)["rows"]
    assert row["item_id"] == "renamed.mp4"
    assert sha(videos / "a.mp4") == source


@pytest.mark.s3
@pytest.mark.parametrize("is_versioned", [False, True], ids=["plain", "versioned"])
def test_forget_leaves_no_version_in_a_bucket(tmp_path: Path, s3_server: S3Server, is_versioned):
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)
    bucket = make_bucket(s3_server.endpoint)
    url, endpoint = f"s3://{bucket}/store", {"VIDEOAR_S3_ENDPOINT": s3_server.endpoint}
    store = open_store(url, endpoint=s3_server.endpoint)
    if is_versioned:  # somebody turns it on later: a store that begins in such a bucket is refused
        store.ledger.prepare_write()
        enabled = {"Status": "Enabled"}
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=enabled)
    videos = tmp_path / "videos"
    videos.mkdir()
    for seed, name in enumerate("abc"):
        draw(videos / f"{name}.mp4", seed)
    (videos / "labels.csv").write_text("file,label_text\na.mp4,a quite private day\nb.mp4,a hill\n")
    options = ["--set", f"inputs.videos={videos}", "--set", "stages.good.policy=permissive"]
    options += ["--set", "stages.clips.rate_fps=null"]
    first = videoar("run", CURATE, *options, store=url, **endpoint)
    rows = store.snapshot(first["outputs"]["clips"]).table().to_pylist()
    (clip,) = (row for row in rows if row["source_name"] == "a.mp4")
    payload = store.objects.get(clip["video_key"])
    traces = {"clip": payload, "picture": base64.b64encode(payload), "caption": clip["caption"]}
    traces |= {"address": clip["source_uri"], "name": "a.mp4"}

    def left() -> dict[str, list[str]]:
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
        versions = [v for page in pages for v in page.get("Versions", ())]
        found: dict[str, list[str]] = {trace: [] for trace in traces}
        for v in versions:
            body = client.get_object(Bucket=bucket, Key=v["Key"], VersionId=v["VersionId"])["Body"]
            data = body.read()
            for trace, wanted in traces.items():
                found[trace] += [v["Key"]] if holds(data, wanted) else []
        return {trace: keys for trace, keys in found.items() if keys}

    assert set(left()) >= {"clip", "caption", "address", "name"}
    found = videoar("forget", "--source", clip["source_id"], store=url, **endpoint)
    assert found["rewritten"] == 1
    assert left() == {}
    listing = store.snapshot(first["inputs"]["videos"]["snapshot"])
    assert sorted(listing.table(["name"])["name"].to_pylist()) == ["b.mp4", "c.mp4"]
    for name in ("clips", "good"):
        with pytest.raises(WithdrawnError, match="takedown"):
            store.snapshot(first["outputs"][name]).table()
    with pytest.raises(WithdrawnError, match="takedown"):
        store.objects.get(clip["video_key"])
    second = videoar("run", CURATE, *options, store=url, **endpoint)
    assert store.snapshot(second["outputs"]["good"]).table().num_rows == 2
    assert left() == {}


def test_forget_of_an_unknown_source_is_rejected(tmp_path: Path):
    store = (tmp_path / "store").as_uri()
    no_sha = videoar("forget", "--source", "a.mp4", store=store, code=2)["stderr"]
    assert "a.mp4: is not a SHA-256" in no_sha
    unknown = videoar("forget", "--source", "0" * 64, store=store, code=2)["stderr"]
    assert "videoar lineage" in unknown
