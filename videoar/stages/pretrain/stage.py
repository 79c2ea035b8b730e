"""Train the transformer on a token store: tokens to a model."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from videoar.contracts.names import MODELS, TOKENS
from videoar.model.pretrained.model_folder import pretrained_fingerprint, text_encoder_fields
from videoar.model.transformer.config import PRESETS, ModelConfig
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import LocalPath
from videoar.pipeline.presets import preset_name, valid_overrides, with_overrides
from videoar.pipeline.stage import (
    Inputs,
    LoopStage,
    Output,
    Port,
    RankContext,
    StageConfig,
    resume,
    runtime,
    save_checkpoint,
)
from videoar.training.config import TransformerTraining


class PretrainConfig(StageConfig):
    """Options of `pretrain`."""

    preset: Annotated[str, preset_name(PRESETS)] = "tiny"
    """Named size."""
    model: Annotated[dict[str, Any], valid_overrides(PRESETS)] = Field(default_factory=dict)
    """Fields of the model that differ from the preset. `num_bits`, `scales` and `time_stride` are
    those of the tokenizer, unless they are given here."""
    text_encoder: LocalPath = runtime("")
    """Folder, on every rank, of a frozen T5 or UMT5 text encoder as transformers saves it; its
    width must be `model.text_width`. Its content enters the fingerprint. Features of the captions
    are computed once and kept in the store. Empty: the embedded encoder, trained with the model."""
    training: TransformerTraining
    """Phases, optimizer, corruption."""
    checkpoint_every: int = runtime(500, ge=1)
    """Steps between checkpoints; one more follows the last step."""

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: dict[str, Any]) -> dict[str, Any]:
        if model.keys() & {"text_encoder", "text_encoder_name"}:
            raise ValueError("the text encoder is the option `text_encoder` of the stage")
        return model

    def model_for(self, tokens: Mapping[str, Any]) -> ModelConfig:
        """Return the model's shape on a tokenizer with these bits and scales.

        Raises:
            ConfigError: there is no text encoder in the folder given.
        """
        encoder = text_encoder_fields(self.text_encoder)
        return with_overrides(PRESETS[self.preset], {**tokens, **self.model, **encoder})


class PretrainStage(LoopStage[PretrainConfig]):
    """Latents and captions to a transformer; with `start`, from an earlier phase's weights."""

    name = "pretrain"
    consumes: ClassVar[Mapping[str, Port]] = {
        "tokens": Port(TOKENS),
        "tokenizer": Port(MODELS),
        "start": Port(MODELS, optional=True),
    }
    produces = MODELS
    config_type = PretrainConfig

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the text encoder and the version of the library that runs it."""
        folder = self.config.text_encoder
        return pretrained_fingerprint(folder) if folder else {}

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            ConfigError: the text encoder cannot be loaded, or `start` was trained with another one.
            ContractError: the tokens were made by another tokenizer than the one given.
            StageError: several steps in a row had a loss or gradient that is not finite.
        """
        from videoar.stages.pretrain.worker import new_trainer, publish, set_text_features

        config = self.config
        trainer, tokenizer_digest = new_trainer(
            inputs, context.store, rank, config.training, config.model_for, config.resources.cpus
        )
        set_text_features(trainer.model, inputs, context.store, rank, config.text_encoder)
        resume(rank, trainer.load)

        def after_step(_: object, metrics: Mapping[str, float]) -> None:
            step = trainer.step
            rank.report(step, config.training.steps, metrics)
            # gradients are summed over ranks, so their weights are equal: one checkpoint serves
            # all
            is_due = step % config.checkpoint_every == 0 or step == config.training.steps
            if is_due and rank.index == 0:
                save_checkpoint(rank, step, trainer.save)

        trainer.run(after_step)
        return None if rank.index else publish(trainer, context.store, tokenizer_digest)
