"""The comparison of two runs or snapshots, on rows that are written by hand."""

import json

import pytest

from tests.support.committed_rows import RowWriter
from tests.support.html_page import HtmlPage
from tests.support.scored_samples import PROMPTS, commit_model, score
from videoar import api
from videoar.core.errors import ConfigError, SnapshotNotFoundError
from videoar.report.comparison import compare
from videoar.report.page import render_comparison
from videoar.storage.store import open_store


@pytest.fixture(scope="module")
def writer():
    writer = RowWriter(open_store("memory://page-comparison"))
    commit_model(writer, "old", (0.5, 0.7, 0.9), [score("recon/psnr", 30.0)])
    commit_model(writer, "new", (0.6, 0.8, 0.95), [score("recon/psnr", 31.0, lock=("b",))])
    for name, motion in (("few", (1.0, 2.0)), ("more", (1.0, 2.0, 3.0, 3.0))):
        rows = [{"clip_id": f"{i:032x}", "motion_mean": value} for i, value in enumerate(motion)]
        writer.commit(name, "clips@1", rows)
    return writer


def test_comparison_of_scores_has_changes_distributions_and_paired_samples(writer):
    result = compare(writer.store, "old_scores", "new_scores")
    flickering, psnr = result.changes
    assert flickering.method == "paired, 3 samples"
    assert psnr.reason == "the protocols differ in a, b"
    (histogram,) = result.histograms
    assert histogram.score == "temporal_flickering"
    assert sum(histogram.counts) == pytest.approx(100)
    assert sum(histogram.other) == pytest.approx(100)
    assert result.num_pairs == 3
    assert [pair.text for pair in result.pairs] == sorted(PROMPTS)
    assert result.pairs[-1].clips[1].video == f"new video {sorted(PROMPTS)[-1]}".encode()


def test_comparison_of_clips_has_counts_funnels_and_percentages(writer):
    result = compare(writer.store, "few", "more")
    (counted,) = result.counts
    assert (counted.dataset, counted.old_rows, counted.new_rows) == ("few, more", 2, 4)
    assert [side.funnel[-1].count for side in (result.old, result.new)] == [2, 4]
    motion = next(h for h in result.histograms if h.score == "motion_mean")
    assert (motion.counts[0], motion.other[0], motion.other[-1]) == (50.0, 25.0, 50.0)


def test_comparison_of_other_contracts_has_counts_only(writer):
    result = compare(writer.store, "few", "new_samples")
    assert result.counts[0].contract == "clips@1, samples@1"
    assert (result.histograms, result.changes, result.pairs) == ((), (), ())


def test_comparison_of_an_unknown_name_is_rejected(writer):
    with pytest.raises(SnapshotNotFoundError, match="nothing_here"):
        compare(writer.store, "few", "nothing_here")


def test_comparison_page_is_balanced_and_shows_text_from_outside_as_text(writer):
    page = HtmlPage(render_comparison(compare(writer.store, "old_scores", "new_scores")))
    assert page.open_tags == []
    assert "<b>a cat</b>" in page.text
    assert "not comparable: the protocols differ in a, b" in page.text
    assert all(url.startswith(("data:", "#")) for url in page.urls())
    assert len([tag for tag, _ in page.tags if tag == "video"]) == 6


def test_comparison_page_without_anything_in_common_has_a_sentence_per_section(writer):
    page = HtmlPage(render_comparison(compare(writer.store, "few", "new_samples")))
    assert page.open_tags == []
    empty = [a for tag, a in page.tags if tag == "p" and a.get("class") == "empty"]
    assert len(empty) == 4  # scores, videos, distributions, and the funnel of the samples


def test_compare_verb_writes_the_page_and_returns_the_numbers(writer, tmp_path):
    result = api.compare(writer.store, "old_scores", "new_scores", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert result["path"] == str(tmp_path / "page.html")
    by_metric = {entry["metric"]: entry for entry in result["changes"]}
    assert by_metric["temporal_flickering"]["outcome"] == "better"
    assert not by_metric["recon/psnr"]["comparable"]
    assert json.loads(json.dumps(result))["num_pairs"] == 3
    with pytest.raises(ConfigError, match="cannot be written"):
        api.compare(writer.store, "few", "more", tmp_path)
