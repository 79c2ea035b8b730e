"""Rows of `features@1` written by hand."""

import numpy as np
import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.evaluation.metric_names import PIXEL_COMPONENTS
from videoar.evaluation.sample_values import FeatureTable
from videoar.evaluation.synthetic import Prediction, encode


def feature_rows(vectors, network="lite0", preset="mean4", digest="d", num_frames=16):
    """Return a row per clip of {clip id: vector}."""
    fixed = {"network": network, "preset": preset, "network_digest": digest}
    return [
        {"clip_id": id_, **fixed, "num_frames": num_frames, "vector": np.float32(vector).tolist()}
        for id_, vector in vectors.items()
    ]


def scene_rows(predictions: dict[str, Prediction]):
    encoded = {id_: encode(prediction) for id_, prediction in predictions.items()}
    return feature_rows(encoded, "synthetic", "scene")


def pixel_rows(values: dict[str, dict[str, float]]):
    vectors = {id_: [of.get(name, 0) for name in PIXEL_COMPONENTS] for id_, of in values.items()}
    return feature_rows(vectors, "pixels", "clip")


def feature_table(*rows):
    schema = load_contract("features@1").arrow_schema
    return FeatureTable(pa.Table.from_pylist(part, schema) for part in rows)
