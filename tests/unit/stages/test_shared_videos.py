"""Real and damaged files end as their manifests expect, with the permissive policy."""

import csv
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.support.shared_data import ROOT
from tests.support.stage_chain import ingest, sift
from videoar.storage.store import open_store

pytestmark = [pytest.mark.shared, pytest.mark.slow]
NATIVE = {"rate_fps": None, "find_shots": False, "max_clips_per_source": 100}
DUPLICATES = {"DUPLICATE_NEAR", "DUPLICATE_EXACT"}
STILL = {"LOW_MOTION", "BLACK", "FROZEN"}
UNMET = {
    "cut60_moov_front.mp4": "9 frames decode, by ffmpeg too: TRUNCATED, no clip to keep",
}


def ends_as_expected(expect, quarantine, clips):
    """Return whether a source ended as its manifest expects; `clips` has each clip's reasons."""
    good = [reasons for reasons in clips if set(reasons) <= DUPLICATES]
    return {
        "accept": bool(good),
        "partial": bool(good),
        "accept_short": quarantine == ["TOO_SHORT"],
        "too_short": quarantine == ["TOO_SHORT"],
        "reject": bool(quarantine),
        "static": not good and all(STILL & set(reasons) for reasons in clips),
        "filter_low_motion": any(STILL & set(reasons) for reasons in clips),
        "duplicate": bool(good),
        "near_duplicate": bool(good),
    }[expect]


def outcomes(folder, manifest, tmp_path):
    """Return {name: (expect, quarantine reasons, reasons of each clip)} after both stages."""
    store = open_store(tmp_path.as_uri())
    clips, metrics = ingest(store, str(folder), **NATIVE)
    good, _ = sift(store, clips, policy="permissive", gate=False)
    assert metrics["sources"] == metrics["sources_kept"] + metrics["sources_rejected"]
    rejected = good.rejects().table().to_pylist()
    assert good.rows + len(rejected) == clips.rows
    names = {r["source_uri"]: r["source_name"] for r in clips.table().to_pylist()}
    reasons = defaultdict(list)
    for row in good.table(["source_name"]).to_pylist():
        reasons[row["source_name"]].append([])
    for row in rejected:
        reasons[names[row["uri"]]].append(row["reasons"])
    quarantine = {r["item_id"]: r["reasons"] for r in clips.rejects().table().to_pylist()}
    with manifest.open(encoding="utf-8", newline="") as file:
        expected = {row["path"]: row["expect"] for row in csv.DictReader(file)}
    return {n: (e, quarantine.get(n, []), reasons[n]) for n, e in expected.items()}


def misses(ends):
    return {name for name, outcome in ends.items() if not ends_as_expected(*outcome)}


@pytest.fixture
def smoke():
    if not (ROOT / "data" / "smoke").is_dir():
        pytest.skip("no data/smoke beside the repository")
    return ROOT / "data" / "smoke"


def has_duplicate(ends, *names):
    return any(DUPLICATES & set(reasons) for name in names for reasons in ends[name][2])


def test_smoke_videos_end_as_the_manifest_expects(smoke, tmp_path):
    ends = outcomes(smoke, smoke / "manifest.csv", tmp_path)
    assert misses(ends) == set()
    assert has_duplicate(ends, "flower.mp4", "flower.webm")


def test_broken_videos_end_as_the_manifest_expects(smoke, tmp_path):
    folder = tmp_path / "broken"
    script = smoke.parent / "make_broken.py"
    subprocess.run([sys.executable, script, smoke, folder], check=True)
    ends = outcomes(folder, folder / "expected.csv", tmp_path)
    assert misses(ends) == set(UNMET)
    copies = [n for n, (expect, _, _) in ends.items() if expect.endswith("duplicate")]
    originals = sum(not all(ends[name][2]) for name in copies)
    assert originals < len(copies)
    assert has_duplicate(ends, *copies)
