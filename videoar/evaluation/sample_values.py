"""Vectors of clips from rows of `features@1`, and the values of metrics per sample.

Score, gate and report read the values of samples from here: nothing else decodes the vectors.
No torch is imported.

Axes: N clips, D features.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from videoar.core.errors import ContractError
from videoar.evaluation import synthetic
from videoar.evaluation.metric_names import METRICS, PIXEL_COMPONENTS
from videoar.media.synthetic import Scene, parse_prompt
from videoar.storage.snapshot import Snapshot

Array = NDArray[np.float64]
Space = tuple[str, str]
"""Network and preset."""

_COLUMNS = ("clip_id", "network", "network_digest", "preset", "vector")


class FeatureTable:
    """Rows of `features@1`, by network, preset and clip."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._vectors: dict[Space, dict[str, NDArray[np.float32]]] = {}
        self._digests: dict[Space, set[str]] = {}
        for table in tables:
            self._add(table)

    @classmethod
    def read(cls, *snapshots: Snapshot) -> "FeatureTable":
        """Return the rows of snapshots that no takedown has withdrawn."""
        return cls(table for snapshot in snapshots for table in snapshot.read_available(_COLUMNS))

    def _add(self, table: pa.Table) -> None:
        # Views of the Arrow buffers: lists of Python floats would take ten times the memory.
        lists = table.column("vector").combine_chunks()
        values, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
        keys = table.select(_COLUMNS[:4]).to_pydict().values()
        rows = zip(*keys, ends[:-1], ends[1:], strict=True)
        for clip_id, network, digest, preset, begin, end in rows:
            self._vectors.setdefault((network, preset), {})[clip_id] = values[begin:end]
            self._digests.setdefault((network, preset), set()).add(digest)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """Networks and presets that there are vectors of, sorted."""
        return tuple(sorted(self._vectors))

    def missing(self, network: str, preset: str, ids: Iterable[str]) -> list[str]:
        """Return the ids of clips without a vector, such as clips that could not be decoded."""
        existing = self._vectors.get((network, preset), {})
        return [clip_id for clip_id in ids if clip_id not in existing]

    def vectors(self, network: str, preset: str, ids: Sequence[str]) -> Array:
        """Return the vectors [N, D] of clips, in the order of the ids.

        Raises:
            ContractError: clips without a vector, with vectors of several lengths, or with a
                vector that is not finite; names them.
        """
        where = f"features of {network} {preset}"
        if missing := self.missing(network, preset, ids):
            raise ContractError(where, f"missing for {listed(missing)}", "see its rejects")
        of_clips = self._vectors.get((network, preset), {})
        if len(lengths := {len(of_clips[clip_id]) for clip_id in ids}) > 1:
            raise ContractError(where, f"vectors have lengths {sorted(lengths)}")
        x_ND = np.array([of_clips[clip_id] for clip_id in ids], dtype=np.float64)
        if not np.isfinite(x_ND).all():
            bad = [ids[int(i)] for i in np.flatnonzero(~np.isfinite(x_ND).all(axis=1))]
            raise ContractError(where, f"not finite for {listed(bad)}")
        return x_ND

    def digest(self, network: str, preset: str) -> str:
        """Return the digest of the network whose vectors these are, "" without vectors.

        Raises:
            ContractError: vectors of several networks of this name.
        """
        digests = sorted(self._digests.get((network, preset), ()))
        if len(digests) > 1:
            what = f"vectors of networks {', '.join(d[:12] for d in digests)}"
            raise ContractError(f"features of {network} {preset}", what, "compute them again")
        return digests[0] if digests else ""


def listed(ids: Sequence[str], count: int = 3) -> str:
    """Return the first few of many ids, and their number."""
    more = f" and {len(ids) - count} more" if len(ids) > count else ""
    return ", ".join(islice(ids, count)) + more


def sample_values(
    metric: str, features: FeatureTable, texts: Mapping[str, str]
) -> dict[str, float]:
    """Return the value of each sample, of a metric of kind `mean`.

    Args:
        metric: name, a key of `METRICS`.
        features: vectors of the samples.
        texts: prompt of each sample, by id.

    Returns:
        Values by sample id. Of `rendered/*` only those of samples whose prompt is one of the
        synthetic corpus: 1 if the clip shows what was prompted, else 0.

    Raises:
        ContractError: samples without a vector.
        ValueError: no metric of one value per sample has this name.
    """
    definition = METRICS[metric]
    if definition.kind != "mean":
        raise ValueError(f"{metric} has no value per sample")
    if definition.network == "synthetic":
        prompted = scenes_of(texts)
        shown = predictions(features, list(prompted))
        return {
            id_: float(synthetic.is_right(definition.component, shown[id_], scene))
            for id_, scene in prompted.items()
        }
    column = PIXEL_COMPONENTS.index(definition.component) if definition.component else 0
    x_ND = features.vectors(definition.network, definition.preset, list(texts))
    return dict(zip(texts, x_ND[:, column].tolist(), strict=True))


def scenes_of(texts: Mapping[str, str]) -> dict[str, Scene]:
    """Return the scene of each sample whose prompt is one of the synthetic corpus."""
    scenes = ((id_, parse_prompt(text)) for id_, text in texts.items())
    return {id_: scene for id_, scene in scenes if scene is not None}


def predictions(features: FeatureTable, ids: Sequence[str]) -> dict[str, synthetic.Prediction]:
    """Return what the classifier of the synthetic corpus predicted of each clip.

    Raises:
        ContractError: clips without a prediction.
    """
    vectors = features.vectors("synthetic", "scene", ids)
    return {id_: synthetic.decode(vector) for id_, vector in zip(ids, vectors, strict=True)}
