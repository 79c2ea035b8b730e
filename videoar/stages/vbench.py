"""Score generated clips with VBench: a row per dimension, and the official totals."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from videoar.contracts.names import SAMPLES, SCORES
from videoar.core.errors import ConfigError, ContractError, VideoARError
from videoar.core.settings import settings
from videoar.core.types import Json, Row
from videoar.evaluation import vbench_process, vbench_weights
from videoar.evaluation.scorecard import mean_interval, not_evaluated, score_row
from videoar.evaluation.vbench import temporal_flickering, vbench_scores, weighted
from videoar.evaluation.vbench_constants import DIMENSIONS, QUALITY, SEMANTIC
from videoar.evaluation.vbench_prompts import video_names
from videoar.evaluation.vbench_samples import VBenchSamples
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig, runtime

logger = logging.getLogger(__name__)
_FLICKERING = "temporal_flickering"
_BOOTSTRAP_SEED = 0


class VBenchConfig(StageConfig):
    """Options of `vbench`."""

    timeout_s: float = runtime(6 * 3600.0, gt=0)
    """Wall-clock seconds of one dimension, after which it is not evaluated."""


class VBenchStage(ReduceStage[VBenchConfig]):
    """Evaluate samples with the package `vbench`, in an interpreter of its own."""

    name = "vbench"
    consumes: ClassVar[Mapping[str, Port]] = {"samples": Port(SAMPLES)}
    produces = SCORES
    config_type = VBenchConfig

    def tools(self) -> Mapping[str, str]:
        """Return the version of VBench and the digests of its weights: what is missing, if any."""
        cache = settings().vbench_cache
        return {
            "vbench": _or_reason(vbench_process.vbench_version, settings().vbench_python),
            **{
                w.path: _or_reason(vbench_weights.verified, w, cache)
                for w in vbench_weights.WEIGHTS
            },
        }

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table: a row per dimension, and the totals."""
        samples = VBenchSamples(inputs["samples"].table().to_pylist())
        with context.scratch() as folder:
            videos = folder / "videos"
            videos.mkdir()
            if not samples.problem:
                samples.export(context.store, videos)
            evaluation = _Evaluation(samples, videos, context, self.config.timeout_s)
            rows = [evaluation.row(dimension) for dimension in DIMENSIONS]
        rows += list(_totals({row["metric"].removeprefix("vbench/"): row for row in rows}))
        metrics = {row["metric"]: row["value"] for row in rows if row["status"] == "ok"}
        yield Output(pa.Table.from_pylist(rows), metrics=metrics)


class _Evaluation:
    """The rows of the dimensions of one set of samples."""

    def __init__(
        self, samples: VBenchSamples, videos: Path, context: StageContext, timeout_s: float
    ) -> None:
        self._samples, self._videos, self._context = samples, videos, context
        self._timeout_s = timeout_s
        self._lock = samples.lock()

    def row(self, dimension: str) -> Row:
        """Return the row of a dimension, with the reason if it was not evaluated."""
        metric, names = f"vbench/{dimension}", video_names(dimension)
        missing = self._samples.missing(dimension)
        reason = self._samples.problem
        if not reason and missing:
            reason = f"{len(missing)} of {len(names)} videos are missing: {', '.join(missing[:3])}"
        if reason:
            return not_evaluated(metric, reason, lock=self._lock)
        try:
            if dimension == _FLICKERING and not settings().vbench_python:
                return self._native_row(metric, names)
            return self._official_row(metric, dimension, names)
        except (ConfigError, ContractError) as error:
            logger.warning("%s: not evaluated: %s", metric, error)
            return not_evaluated(metric, str(error), lock=self._lock)

    def _official_row(self, metric: str, dimension: str, names: list[str]) -> Row:
        python, cache = settings().vbench_python, settings().vbench_cache
        version = vbench_process.vbench_version(python)
        weights = {
            weight.path: vbench_weights.verified(weight, cache)
            for weight in vbench_weights.weights_of(dimension)
        }
        for warning in vbench_weights.licence_warnings((dimension,)):
            logger.warning("%s: %s", metric, warning)
        result = vbench_process.evaluate_dimension(
            python, cache, dimension, self._videos, names, self._timeout_s
        )
        provenance = {"vbench": version, "weights": weights, **result.provenance}
        # for the archive of a submission
        key = self._context.store.put_object(result.data, ".json").key
        details: dict[str, Json] = {"result_key": key}
        return self._scored(metric, result.value, list(result.by_video.values()), {
            "scorer": "subprocess", "mode": "vbench_standard, one process, no static filter",
            **provenance,
        }, details)  # fmt: skip

    def _native_row(self, metric: str, names: list[str]) -> Row:
        """Evaluate the one dimension that needs no network, where there is no `vbench`."""
        from videoar.media.decode import decode_clip

        objects, rows = self._context.store.objects, self._samples.rows
        values = [
            temporal_flickering(decode_clip(objects.get(rows[name]["video_key"]))) for name in names
        ]
        return self._scored(metric, float(np.mean(values)), values, {"scorer": "native"}, {})

    def _scored(
        self,
        metric: str,
        value: float,
        values: list[float],
        protocol: Mapping[str, Json],
        details: Mapping[str, Json],
    ) -> Row:
        # an interval only where the score is the mean of the videos: some are means of frames
        is_mean = bool(values) and bool(np.isclose(np.mean(values), value, atol=1e-6))
        return score_row(
            metric,
            value,
            lock={**self._lock, **protocol},
            num_samples=len(values),
            interval=mean_interval(values, _BOOTSTRAP_SEED) if is_mean else None,
            details=details,
        )


def _totals(rows: Mapping[str, Row]) -> Iterator[Row]:
    """Yield the rows of the aggregates, each only with all of its dimensions."""
    raw = {name: row["value"] for name, row in rows.items() if row["status"] == "ok"}
    for total, parts in (("quality", QUALITY), ("semantic", SEMANTIC), ("total", DIMENSIONS)):
        metric = f"vbench/{total}"
        lock = {"dimensions": {name: rows[name]["lock_digest"] for name in parts}}
        if missing := [name for name in parts if name not in raw]:
            yield not_evaluated(metric, f"no value of {', '.join(missing)}", lock=lock)
            continue
        value = (
            vbench_scores(raw)["total"]
            if total == "total"
            else weighted(raw, QUALITY if total == "quality" else SEMANTIC)
        )
        num = max(rows[name]["num_samples"] for name in parts)
        yield score_row(metric, value, lock=lock, num_samples=num)


def _or_reason(check: Callable[..., str], *arguments: object) -> str:
    try:
        return check(*arguments)
    except VideoARError as error:
        return str(error)
