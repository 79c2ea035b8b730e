"""Sources of several shapes to clips of several sizes, one tokenizer and batches of one shape."""

import io

import av
import pytest

from tests.support.small_videos import document, draw, run
from videoar.report.collect import collect
from videoar.report.page import render
from videoar.storage.store import open_store
from videoar.training.data.token_loader import TokenLoader

SIZES = {"square": (64, 64), "wide": (64, 112), "tall": (112, 64)}
TAKEN = {"square": (32, 32), "wide": (32, 56), "tall": (56, 32)}


@pytest.mark.slow
def test_clips_of_several_shapes_keep_their_shape_up_to_the_batches(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    lines = ["file,split"]
    for seed, (name, (height, width)) in enumerate(3 * list(SIZES.items())):
        draw(videos / f"{name}-{seed}.mp4", seed, height_px=height, width_px=width)
        lines.append(f"{name}-{seed}.mp4,{'val' if seed < 3 else 'train'}")
    (videos / "labels.csv").write_text("\n".join(lines))
    doc = document(videos, per_shard=4)
    doc["stages"]["clips"] |= {
        "size_px": [list(size) for size in TAKEN.values()],
        "keep": "references",
    }
    doc["stages"] |= {
        "tokenizer": {
            "stage": "train_tokenizer", "from": {"clips": "good"}, "preset": "tiny",
            "training": {"steps": 6, "batch_clips": 2, "excerpt_frames": 5}, "validations": 1,
        },
        "tokens": {"stage": "tokenize", "from": {"clips": "good", "tokenizer": "tokenizer"}},
    }  # fmt: skip
    store = open_store((tmp_path / "store").as_uri())
    made = run(store, doc)
    assert made.status == "SUCCEEDED"

    clips = store.snapshot(made.outputs["good"]).table().to_pylist()
    assert len(clips) == 9
    for row in clips:
        name = row["source_name"].partition("-")[0]
        assert (row["height_px"], row["width_px"]) == TAKEN[name]
    loader = TokenLoader(store.snapshot(made.outputs["tokens"]), 2, seed=0, split="", verify=True)
    batches = list(loader)
    sides = {row["clip_id"]: (row["height_px"] // 8, row["width_px"] // 8) for row in clips}
    for batch in batches:
        shapes = {sides[clip_id] for clip_id in batch["clip_ids"]}
        assert shapes == {tuple(batch["latent_BTKHW"].shape[-2:])}
    assert len(batches) == len(loader) == 6
    met = [clip_id for batch in batches for clip_id in batch["clip_ids"]]
    assert sorted(met) == sorted(sides)

    page = collect(store, made)
    assert "data:image/jpeg" in render(page)
    shapes = set()
    for thumbnail in page.contact_sheets[0].thumbnails:
        with av.open(io.BytesIO(thumbnail.jpeg)) as jpeg:
            shapes.add(next(jpeg.decode(video=0)).to_ndarray(format="rgb24").shape[:2])
    assert shapes == set(TAKEN.values())
