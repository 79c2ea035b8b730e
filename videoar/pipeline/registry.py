"""Registry of stage types: the name in a pipeline file to the class that implements it.

The table is explicit: there are no entry points and no decorators, so what a pipeline can name is
decided here alone. Classes are given as text and imported on first use, so that a command imports
only the stages that it needs.
"""

from collections.abc import Mapping
from typing import Any, cast

from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.lazy import imported
from videoar.pipeline.stage import Stage

Registry = Mapping[str, str]
"""Stage type to `module:Class`. Tests pass their own."""

BUILTIN: Registry = {  # in the order of a pipeline, which is that of the generated reference
    "ingest": "videoar.stages.ingest.stage:IngestStage",
    "profile": "videoar.stages.profile:ProfileStage",
    "filter": "videoar.stages.filter:FilterStage",
    "caption": "videoar.stages.annotate.stage:CaptionStage",
    "embed": "videoar.stages.annotate.stage:EmbedStage",
    "train_tokenizer": "videoar.stages.train_tokenizer.stage:TrainTokenizerStage",
    "tokenize": "videoar.stages.tokenize.stage:TokenizeStage",
    "compact": "videoar.stages.compact:CompactStage",
    "pretrain": "videoar.stages.pretrain.stage:PretrainStage",
    "evalset": "videoar.stages.evalset:EvalsetStage",
    "generate": "videoar.stages.generate.stage:GenerateStage",
    "features": "videoar.stages.features.stage:FeaturesStage",
    "vbench": "videoar.stages.vbench:VBenchStage",
    "score": "videoar.stages.score.stage:ScoreStage",
    "train_domain": "videoar.stages.train_domain.stage:TrainDomainStage",
    "promote": "videoar.stages.promote:PromoteStage",
}


def stage_class(type_name: str, registry: Registry = BUILTIN) -> type[Stage[Any]]:
    """Return the class of a stage type.

    Raises:
        ConfigError: no stage of this type.
    """
    if type_name not in registry:
        raise ConfigError(type_name, "unknown stage type", did_you_mean(type_name, list(registry)))
    return cast("type[Stage[Any]]", imported(registry[type_name]))


def make_stage(
    type_name: str, config: Mapping[str, Any], registry: Registry = BUILTIN
) -> Stage[Any]:
    """Return a stage with a config; the values were validated when the pipeline was loaded."""
    cls = stage_class(type_name, registry)
    return cls(cls.config_type.model_validate(config))
