"""Clips, real or generated, to the vectors that distances and scores are computed from."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from videoar.contracts.names import CLIPS, EVALSETS, FEATURES, MODELS, SAMPLES
from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json, sha256_hex
from videoar.core.settings import settings
from videoar.evaluation.evalset import clip_rows
from videoar.evaluation.registry import DOMAIN, requested_presets
from videoar.media.clip_reader import COLUMNS
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, PackedRows, Port, Shard, StageConfig
from videoar.storage.snapshot import Snapshot

_PORTS = ("clips", "samples", "evalset")
_SHARD_CLIPS = 32  # chosen: seconds of work; a set has no files to be divided by
_COLUMNS = ("clip_id", "num_frames", "rate_fps", *COLUMNS)


class FeaturesConfig(StageConfig):
    """Options of `features`."""

    networks: tuple[str, ...] = Field(default=("lite0", "pixels", "synthetic"), min_length=1)
    """What to compute: networks and measures by name, or one preset as `NETWORK:PRESET`.
    `lite0`: EfficientNet-Lite0 (`mean4`, `change4`; also `windows`, `consistency`). `i3d`, which
    needs its weights, and `random_i3d` (`common_metrics`; also `google-research`, `stylegan-v`).
    `pixels`: flickering, motion, sharpness and colour, of the clip and of its quarters.
    `synthetic`: what the classifier of the synthetic corpus sees. `domain`: features of the
    classifier at the port `domain`, which `train_domain` makes."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights of `random_i3d`."""

    @field_validator("networks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            requested_presets(names)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return names

    def needs(self) -> Mapping[str, str]:
        """Return the port of the classifier, if its features are computed."""
        uses_domain = DOMAIN in requested_presets(self.networks)
        return {DOMAIN: "networks has domain"} if uses_domain else {}


class FeaturesStage(MapStage[FeaturesConfig]):
    """One file of clips or samples to a file of vectors; an evaluation set in parts.

    A clip's vectors depend on that clip alone: clips that are added to a data set cost only their
    own files.
    """

    name = "features"
    consumes: ClassVar[Mapping[str, Port]] = {
        "clips": Port(CLIPS, optional=True),
        "samples": Port(SAMPLES, optional=True),
        "evalset": Port(EVALSETS, optional=True),
        "domain": Port(MODELS, optional=True),
    }
    produces = FEATURES
    config_type = FeaturesConfig
    primary = "clips"
    overlap = 2  # one shard computes while the other reads or writes

    @property
    def sharded(self) -> Collection[str]:
        """Ports of clips: their rows are in the shards."""
        return _PORTS

    def divided(self, inputs: Inputs) -> Snapshot:
        """Return the one input with clips.

        Raises:
            ConfigError: there is none, or several.
        """
        given = [port for port in _PORTS if port in inputs]
        if len(given) != 1:
            what = f"has {' and '.join(given) or 'no clips'}"
            raise ConfigError("features", what, f"give it exactly one of {', '.join(_PORTS)}")
        return inputs[given[0]]

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the I3D weights, if they are used.

        Raises:
            ConfigError: there are none, or they are not those of FVD.
        """
        if "i3d" not in requested_presets(self.config.networks):
            return {}
        path = Path(settings().i3d_weights)
        if not path.is_file():  # Path("") is the working directory, which is no file
            what = f"i3d needs weights, {settings().i3d_weights or 'none'} are set"
            raise ConfigError("features.networks", what, "set VIDEOAR_I3D_WEIGHTS to their file")
        from videoar.evaluation.i3d import check_identity  # torch, for this network only

        data = path.read_bytes()
        check_identity(data, str(path))
        return {"i3d_weights": sha256_hex(data)}

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Return one shard per file; of an evaluation set, one per 32 clips.

        Raises:
            ConfigError: not exactly one input.
            GateError: a takedown has removed a source of the evaluation set.
        """
        source = self.divided(inputs)
        if "evalset" not in inputs:
            return super().shards(inputs)
        # Sorted, so that the shards do not depend on the order of files and rows.
        rows = sorted(clip_rows(source), key=lambda row: row["clip_id"])
        parts = [rows[i : i + _SHARD_CLIPS] for i in range(0, len(rows), _SHARD_CLIPS)]
        needed = [[{name: row[name] for name in _COLUMNS} for row in part] for part in parts]
        return [Shard(i, digest_json(part), rows=PackedRows(part)) for i, part in enumerate(needed)]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the networks."""
        from videoar.stages.features.worker import FeaturesWorker

        presets = requested_presets(self.config.networks)
        return FeaturesWorker(
            context, self.config.resources.cpus, presets, self.config.seed, inputs.get(DOMAIN)
        )
