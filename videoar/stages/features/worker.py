"""Worker of `features`: reads clips ahead, computes the vectors of one after the other.

A clip that cannot be decoded, or does not have the frames of its row, is rejected. One that is too
short for a network has no vector of that network, and a row among the rejects that says so.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.contracts.names import FEATURES, REJECTS
from videoar.core.crash_points import crash_point
from videoar.core.errors import ContractError, MediaError
from videoar.core.types import Row
from videoar.evaluation.extractor import Clip
from videoar.evaluation.networks import DomainFeatures
from videoar.evaluation.registry import DOMAIN, open_extractor
from videoar.media.clip_prefetch import ClipPrefetcher
from videoar.media.reject_codes import Code, reject_row
from videoar.model.device import limit_threads
from videoar.pipeline.context import StageContext
from videoar.pipeline.device_queue import DeviceQueue
from videoar.pipeline.stage import Output
from videoar.storage.snapshot import Snapshot
from videoar.training.model_store import load_classifier

_AHEAD = 4  # chosen: clips that are read while one is computed
_STAGE = "features"


class FeaturesWorker:
    """Computes shards; concurrent calls share the networks and the clip readers.

    Args:
        context: store, and clip readers of the engine.
        cpus: cores of this worker; all but one read clips.
        presets: presets of each network.
        seed: of random weights.
        domain: model of the network `domain`.

    Raises:
        ConfigError: the weights of a network are missing or other ones.
        ContractError: `domain` holds no classifier.
    """

    def __init__(
        self,
        context: StageContext,
        cpus: float,
        presets: Mapping[str, Sequence[str]],
        seed: int,
        domain: Snapshot | None = None,
    ) -> None:
        # Sums of several threads may round differently: more workers compute faster, not more cores
        limit_threads(1)
        self._extractors = [
            open_extractor(name, tuple(chosen), seed=seed)
            for name, chosen in presets.items()
            if name != DOMAIN
        ]
        if DOMAIN in presets and domain is not None:
            self._extractors.append(DomainFeatures(*load_classifier(domain, context.store)))
        self._clips = ClipPrefetcher(
            context.store.objects,
            threads=max(1, int(cpus) - 1),
            open_slots=context.open_reader_slots,
        )
        self._device = DeviceQueue()

    def __call__(self, batch: pa.Table) -> Output:
        """Return the vectors of a shard's clips, sorted by clip, network and preset."""
        usage = self._device.start_shard()
        rejected: list[Row] = []
        features: list[Row] = []
        rows = map(_clip_row, batch.to_pylist())
        for row, frames in self._clips.each(rows, _STAGE, rejected, _AHEAD):
            with usage.acquire(items=1):
                features += self._vectors(row, frames, rejected)
            crash_point("features-computed")
        features.sort(key=lambda row: (row["clip_id"], row["network"], row["preset"]))
        rejects = pa.Table.from_pylist(rejected, load_contract(REJECTS).arrow_schema)
        table = pa.Table.from_pylist(features, load_contract(FEATURES).arrow_schema)
        return Output(table, rejects, usage.metrics())

    def stop(self) -> None:
        """Make calls that wait for the device raise."""
        self._device.stop()

    def _vectors(self, row: Row, frames: np.ndarray, rejected: list[Row]) -> Iterator[Row]:
        """Yield the rows of `features@1` of a clip; append a reject if any network has none."""
        if len(frames) != row["num_frames"]:
            what = f"has {len(frames)} frames, but {row['num_frames']} in its row"
            rejected.append(_reject(row, "CORRUPT", what))
            return
        too_short: list[str] = []
        clip = Clip(id=row["clip_id"], frames=frames, rate_fps=row["rate_fps"], text="")
        for extractor in self._extractors:
            try:
                vectors = extractor.vectors(clip)
            except ContractError as error:
                too_short.append(error.what)
                continue
            for preset, vector in vectors.items():
                yield {
                    "clip_id": clip.id,
                    "source_id": row["source_id"],
                    "network": extractor.name,
                    "network_digest": extractor.digest,
                    "preset": preset,
                    "num_frames": len(frames),
                    "vector": vector,
                }
        if too_short:
            rejected.append(_reject(row, "TOO_SHORT", "; ".join(too_short)))


def _clip_row(row: Row) -> Row:
    """Return what reading a clip requires; of a generated sample, under the names of a clip."""
    if "sample_id" not in row:
        return row
    # no source: its video is in the store
    ids = {"clip_id": row["sample_id"], "source_id": None, "source_uri": row["video_key"]}
    return row | ids


def _reject(row: Row, code: Code, what: str) -> Row:
    return reject_row(
        MediaError(row["source_uri"], code, what),
        item_id=row["clip_id"],
        kind="clip",
        stage=_STAGE,
        source_id=row["source_id"],
        uri=row["source_uri"],
    )
