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
    features += _lite0(ids, [[value, i / 2] for i, value in enumerate(flickering)])
    writer.commit(f"{name}_features", "features@1", features)
    if "evalset" not in writer.ids:
        clips = [{"item_id": f"{i}", "kind": "clip", "role": "reference", "protocol": "default",
                  "clip_json": json.dumps({"clip_id": f"{i}"})} for i in range(3)]  # fmt: skip
        writer.commit("evalset", "evalsets@1", clips)
        vectors = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        writer.commit("real_features", "features@1", _lite0(map(str, range(3)), vectors))
    mean = score(FLICKERING, sum(flickering) / len(flickering))
    ports = {
        "samples": f"{name}_samples",
        "sample_features": f"{name}_features",
        "evalset": "evalset",
        "reference_features": "real_features",
    }
    writer.commit(f"{name}_scores", "scores@1", [mean, *scores], ports)


def _lite0(ids, vectors) -> list[dict]:
    return [
        {"clip_id": id_, "network": "lite0", "preset": "mean4", "vector": vector}
        for id_, vector in zip(ids, vectors, strict=True)
    ]
