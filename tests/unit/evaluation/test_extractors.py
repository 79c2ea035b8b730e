"""Extractors: presets with names of their own, equal vectors for equal clips, exact encodings."""

import csv
import subprocess
import sys
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch

from tests.support.shared_data import ROOT
from videoar.core.errors import ConfigError, ContractError
from videoar.evaluation import i3d, i3d_presets, synthetic
from videoar.evaluation.extractor import Clip
from videoar.evaluation.metric_names import PIXEL_COMPONENTS, WINDOW_COMPONENTS
from videoar.evaluation.networks import consistency
from videoar.evaluation.registry import NETWORKS, open_extractor, requested_presets
from videoar.media.decode import decode_clip
from videoar.media.synthetic import draw, scenes

SCENE = next(iter(scenes()))
CLIP = Clip("a", draw(SCENE, 17, 32, 8.0), 8.0, SCENE.prompt)


def clip_of(frames_THWC):
    return Clip("b", np.ascontiguousarray(frames_THWC, dtype=np.uint8), 8.0, "")


@pytest.fixture(scope="module")
def lite0():
    return open_extractor("lite0", ("mean4", "change4", "windows", "consistency"))


def test_requested_presets_adds_named_ones_to_the_default():
    assert requested_presets(["lite0:windows", "pixels", "lite0"]) == {
        "lite0": ("windows", "mean4", "change4"),
        "pixels": ("clip", "windows"),
    }
    for name, message in (
        ("lite", "unknown network.*lite0"),
        ("i3d:tats", "unknown preset of i3d"),
    ):
        with pytest.raises(ConfigError, match=message):
            requested_presets([name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in {"i3d", "domain"}])
def test_extractor_computes_each_of_its_presets_the_same_again(name):
    known = NETWORKS[name]
    presets = known.default + (() if name == "random_i3d" else known.others)  # a second each
    extractor = open_extractor(name, presets)
    clip = replace(CLIP, frames=CLIP.frames[: i3d.MIN_FRAMES])
    vectors = extractor.vectors(clip)
    assert (extractor.name, tuple(vectors)) == (name, presets)
    assert extractor.digest
    again = open_extractor(name, presets).vectors(replace(clip, id="other"))
    for preset, vector in vectors.items():
        assert vector.dtype == np.float32
        assert vector.ndim == 1
        assert np.isfinite(vector).all()
        assert vector.tobytes() == again[preset].tobytes()


def test_extractor_of_weights_that_are_missing_names_them():
    with pytest.raises(ConfigError, match="no I3D weights"):
        open_extractor("i3d")


def test_extractor_of_too_short_a_clip_says_how_many_frames_it_needs():
    for name, num in (("lite0", 3), ("random_i3d", 8), ("pixels", 3)):
        with pytest.raises(
            ContractError, match=f"clip a: has {num} frames, {name} needs {num + 1}"
        ):
            open_extractor(name).vectors(replace(CLIP, frames=CLIP.frames[:num]))


@pytest.mark.slow
def test_lite0_mean_ignores_the_order_of_frames_and_change_does_not(lite0):
    # the middle frames of four windows of five frames are 2, 7, 12, 17
    frames = np.zeros((20, 32, 32, 3))
    for i, frame in enumerate((2, 7, 12, 17)):
        frames[frame, :, : 8 * (i + 1)] = 255
    swapped = frames.copy()
    swapped[[2, 12]] = frames[[12, 2]]
    ours, other = lite0.vectors(clip_of(frames)), lite0.vectors(clip_of(swapped))
    assert ours["mean4"].shape == (320,)
    np.testing.assert_allclose(ours["mean4"], other["mean4"], atol=1e-5)
    assert np.abs(ours["change4"] - other["change4"]).mean() > 0.01
    windows = ours["windows"].reshape(4, 320)
    np.testing.assert_allclose(windows.mean(axis=0), ours["mean4"], atol=1e-5)
    np.testing.assert_allclose(
        np.abs(np.diff(windows, axis=0)).mean(axis=0), ours["change4"], atol=1e-5
    )


@pytest.mark.slow
def test_consistency_follows_the_published_formula(lite0):
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    # frame 1: 0 and 0; frame 2: -1, which counts as 0, and 0
    assert consistency(features).tolist() == [0.0]
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    half = 0.5**0.5
    expected = ((half + half) / 2 + (half + 0) / 2) / 2
    assert consistency(features).item() == pytest.approx(expected)
    frozen = lite0.vectors(clip_of(np.repeat(CLIP.frames[:1], 17, axis=0)))
    assert frozen["consistency"].item() == pytest.approx(1)
    assert frozen["change4"].max() < 1e-5
    assert lite0.vectors(CLIP)["consistency"].item() < 0.999


def reference_resize_bilinear(image_HWC, side):
    """`tf.image.resize_bilinear` of TensorFlow 1: its kernel, pixel by pixel."""
    height, width = image_HWC.shape[:2]
    out = np.zeros((side, side, 3))
    for y in range(side):
        for x in range(side):
            in_y, in_x = y * height / side, x * width / side
            top, left = int(in_y), int(in_x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = in_y - top, in_x - left
            above = image_HWC[top, left] * (1 - dx) + image_HWC[top, right] * dx
            below = image_HWC[bottom, left] * (1 - dx) + image_HWC[bottom, right] * dx
            out[y, x] = above * (1 - dy) + below * dy
    return out


def test_google_research_resizes_like_tensorflow_1():
    frames = np.random.default_rng(0).integers(0, 256, (2, 300, 48, 3)).astype(np.uint8)
    video = i3d_presets.google_research(frames)
    assert video.shape == (1, 2, 224, 224, 3)
    expected = reference_resize_bilinear(frames[1].astype(float), 224) / 127.5 - 1
    np.testing.assert_allclose(video[0, 1].numpy(), expected, atol=2e-4)


def test_i3d_presets_differ_except_on_squares():
    wide = np.random.default_rng(0).integers(0, 256, (1, 40, 64, 3)).astype(np.uint8)
    presets = i3d_presets.PRESETS
    ours = {name: p.preprocess(wide) for name, p in presets.items() if p.num_frames == 16}
    for name, video in ours.items():
        assert video.shape == (1, 1, 224, 224, 3), name
        others = [other for key, other in ours.items() if key != name]
        assert all((video - other).abs().mean() > 0.01 for other in others), name
    square = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3)).astype(np.uint8)
    assert torch.equal(i3d_presets.common_metrics(square), i3d_presets.stylegan_v(square))
    assert set(presets) == set(NETWORKS["i3d"].default + NETWORKS["i3d"].others)


def test_pixel_measures_of_drawn_clips_are_the_known_values():
    names = dict(zip(PIXEL_COMPONENTS, range(len(PIXEL_COMPONENTS)), strict=True))

    def measured(frames):
        vector = open_extractor("pixels").vectors(clip_of(frames))["clip"]
        return {name: vector[i] for name, i in names.items()}

    grey = measured(np.full((8, 16, 16, 3), 127))
    assert grey["temporal_flickering"] == grey["hist_consistency"] == 1
    assert grey["linear_interp_residual"] == grey["frame_diff_top5"] == 0
    assert grey["laplacian_var"] == grey["colourfulness"] == 0
    assert grey["exposure"] == pytest.approx(1, abs=1e-3)
    # alternating black and white: neighbours share no colour, and are as far apart as can be
    blink = np.zeros((9, 16, 16, 3))
    blink[1::2] = 255
    blinking = measured(blink)
    assert blinking["temporal_flickering"] == blinking["hist_consistency"] == 0
    assert blinking["linear_interp_residual"] == blinking["frame_diff_top5"] == 1
    assert blinking["exposure"] == pytest.approx(np.exp(-0.75 / 0.08), rel=1e-3)
    # a steady ramp is its own interpolation
    ramp = measured(np.arange(9)[:, None, None, None] * np.full((1, 16, 16, 3), 10))
    assert ramp["linear_interp_residual"] == 0
    assert ramp["temporal_flickering"] == pytest.approx(245 / 255)
    # one colour: no spread, 0.3 of its distance from grey
    red = np.zeros((8, 16, 16, 3))
    red[..., 0] = 255
    assert measured(red)["colourfulness"] == pytest.approx(0.3 * np.hypot(255, 127.5), rel=1e-5)
    # black and white columns: the second difference is 2 * 255, with alternating sign
    columns = np.zeros((8, 16, 16, 3))
    columns[:, :, ::2] = 255
    assert measured(columns)["laplacian_var"] == pytest.approx(510**2, rel=1e-5)


def test_pixel_windows_show_when_a_clip_blurs():
    frames = np.zeros((17, 16, 16, 3))
    frames[:8, :, ::2] = 255
    windows = open_extractor("pixels").vectors(clip_of(frames))["windows"]
    sharpness = windows.reshape(4, len(WINDOW_COMPONENTS))[
        :, WINDOW_COMPONENTS.index("laplacian_var")
    ]
    assert sharpness[0] == pytest.approx(510**2, rel=1e-5)
    assert sharpness[2] == sharpness[3] == 0


def test_prediction_is_encoded_exactly():
    extractor = open_extractor("synthetic")
    for clip in (CLIP, clip_of(np.zeros((9, 32, 32, 3)))):
        expected = synthetic.classify(clip.frames, clip.rate_fps)
        vector = extractor.vectors(clip)["scene"]
        assert synthetic.decode(vector) == expected
    assert synthetic.decode(extractor.vectors(CLIP)["scene"]).shape == SCENE.shape


@pytest.mark.parametrize("change", [{0: 99}, {1: 0.5}, {2: -2}, {6: 0.5}, {0: float("nan")}])
def test_decode_of_other_numbers_is_refused(change):
    vector = synthetic.encode(synthetic.classify(CLIP.frames, 8.0))
    for index, value in change.items():
        vector[index] = value
    with pytest.raises(ContractError, match="no prediction"):
        synthetic.decode(vector)
    with pytest.raises(ContractError, match="no prediction"):
        synthetic.decode(vector[:4])


def test_measures_without_weights_load_no_torch():
    code = (
        "import sys; from videoar.evaluation.registry import open_extractor; "
        "open_extractor('pixels'), open_extractor('synthetic'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def clips_of_ucf():
    """Return (class, path) of 60 clips: of each of five classes, one clip of 12 groups."""
    folder = ROOT / "data" / "ucf5"
    if not folder.is_dir():
        pytest.skip("no data/ucf5 beside the repository")
    rows = list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))
    rows.sort(key=lambda row: row["file"])
    firsts = [next(rows) for _, rows in groupby(rows, key=lambda row: row["group"])]
    of_class = groupby(firsts, key=lambda row: row["label"])
    return [(name, folder / row["file"]) for name, rows in of_class for row in list(rows)[:12]]


def nearest_neighbour_accuracy(vectors_ND, classes, num=3):
    unit = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -1)
    hits = 0
    for row, own in zip(similarity, classes, strict=True):
        near = [classes[i] for i in np.argsort(-row)[:num]]
        hits += max(dict.fromkeys(near), key=near.count) == own
    return hits / len(classes)


@pytest.mark.shared
@pytest.mark.slow
def test_lite0_tells_classes_of_real_clips_apart():
    clips = clips_of_ucf()
    assert len(clips) == 60
    extractor = open_extractor("lite0")
    # 16 frames at 8.3 fps, like clips of an ingest
    vectors = [
        extractor.vectors(Clip(str(path), decode_clip(path.read_bytes())[:48:3], 25 / 3, ""))
        for _, path in clips
    ]
    classes = [name for name, _ in clips]
    mean = np.stack([of_clip["mean4"] for of_clip in vectors]).astype(float)
    change = np.stack([of_clip["change4"] for of_clip in vectors]).astype(float)
    assert nearest_neighbour_accuracy(mean, classes) >= 0.9
    assert nearest_neighbour_accuracy(np.hstack([mean, change]), classes) >= 0.85
    assert nearest_neighbour_accuracy(change, classes) <= 0.6
