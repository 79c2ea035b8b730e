"""Samples of one model with their vectors and scores, written by hand."""

import json

from videoar.evaluation.metric_names import FLICKERING, PIXEL_COMPONENTS

PROMPTS = ("a red circle moving left", "a blue square moving up", "<b>a cat</b>")


def score(metric, value, *, half=0.1, lock=("a",), details=None, **columns) -> dict:
    """Return a row of `scores@1` with an interval of +- half."""
    return {
        "metric": metric, "value": value, "ci_low": value - half, "ci_high": value + half,
        "lock_json": json.dumps({"metric": metric, "preset": "mean4", **dict.fromkeys(lock, 1)}),
        "lock_digest": "-".join((metric, *lock)), "higher_is_better": True, "chance": None,
        "num_samples": 3, "num_reference": 0, "status": "ok", "reason": None,
        "details_json": json.dumps(details or {}), **columns,
    }  # fmt: skip


def commit_model(writer, name, flickering, scores, *, seeds=(0, 1, 2)) -> None:
    """Commit `<name>_samples`, `<name>_features` and `<name>_scores` with a value per sample.

    Args:
        writer: a `RowWriter`.
        name: of the model.
        flickering: value of each sample.
        scores: rows of other scores.
        seeds: of the samples.
    """
    ids = [f"{name}{i}".encode().hex().rjust(32, "0") for i in range(len(flickering))]
    samples = [
        {"sample_id": id_, "prompt": prompt, "index": 0, "seed": seed,
         "video_key": writer.store.put_object(f"{name} video {prompt}".encode(), ".mp4").key}
        for id_, prompt, seed in zip(ids, PROMPTS, seeds, strict=True)
    ]  # fmt: skip
    writer.commit(f"{name}_samples", "samples@1", samples)
    column = PIXEL_COMPONENTS.index(FLICKERING)
    vectors = [[value if i == column else 0.5 for i in range(len(PIXEL_COMPONENTS))]
               for value in flickering]  # fmt: skip
    features = [
        {"clip_id": id_, "network": "pixels", "preset": "clip", "vector": vector}
        for id_, vector in zip(ids, vectors, strict=True)
    ]
    writer.commit(f"{name}_features", "features@1", features)
    mean = score(FLICKERING, sum(flickering) / len(flickering))
    ports = {"samples": f"{name}_samples", "sample_features": f"{name}_features"}
    writer.commit(f"{name}_scores", "scores@1", [mean, *scores], ports)
