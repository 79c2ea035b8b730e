"""Train the transformer on a token store: tokens to a model."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from videoar.contracts.names import MODELS, TOKENS
from videoar.core.errors import ConfigError, one_line
from videoar.core.ids import digest_json
from videoar.model.pretrained.model_folder import pretrained_fingerprint, text_encoder_fields
from videoar.model.transformer.config import PRESETS, ModelConfig
from videoar.pipeline.checkpoints import Checkpoints, resume
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import code_closure
from videoar.pipeline.local_path import LocalPath
from videoar.pipeline.presets import preset_name, valid_overrides, with_overrides
from videoar.pipeline.stage import (
    Inputs,
    LoopStage,
    Output,
    Port,
    RankContext,
    StageConfig,
    publish_gate,
    runtime,
)
from videoar.training.config import TransformerTraining

if TYPE_CHECKING:
    from videoar.training.transformer import TransformerTrainer


OF_START = "start"
_SHAPES = {**PRESETS, OF_START: PRESETS["tiny"]}
"""Presets by name; of that of the start, which is not known before a run, any shape stands here."""
SAMPLE_SCORER = "videoar.stages.pretrain.samples:SampleScorer"


class PretrainConfig(StageConfig):
    """Options of `pretrain`."""

    preset: Annotated[str, preset_name(_SHAPES)] = "tiny"
    """Named size; `start` is that of the model at the port `start`."""
    model: Annotated[dict[str, Any], valid_overrides(_SHAPES)] = Field(default_factory=dict)
    """Fields of the model that differ from the preset. `num_bits`, `scales` and `time_stride` are
    those of the tokenizer, unless they are given here."""
    text_encoder: LocalPath = runtime("")
    """Folder, on every rank, of a frozen T5 or UMT5 text encoder as transformers saves it; its
    width must be `model.text_width`. Its content enters the fingerprint. Features of the captions
    are computed once and kept in the store. Empty: the embedded encoder, trained with the model."""
    training: TransformerTraining
    """Phases, optimizer, corruption."""
    max_val_nats: float | None = publish_gate(None, gt=0)
    """Gate: maximum loss of the val rows, in weighted nats per bit (ln 2 = 0.693 at chance level);
    a worse model is not published."""
    checkpoint_every: int = runtime(500, ge=1)
    """Steps between checkpoints; one more follows the last step."""

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: dict[str, Any]) -> dict[str, Any]:
        if model.keys() & {"text_encoder", "text_encoder_name"}:
            raise ValueError("the text encoder is the option `text_encoder` of the stage")
        return model

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        """With a range of workers shares may differ by a row: their losses are weighted by it."""
        workers = self.resources.workers
        for number, phase in enumerate(self.training.phases):
            sizes = {part.batch_size for part in phase.stores.values()} | {phase.batch_size}
            for size in sorted(size for size in sizes if size):
                if isinstance(workers, int) and size % workers:
                    where = f"training.phases.{number}.batch_size={size}"
                    raise ValueError(f"{where} is not a multiple of resources.workers={workers}")
        return self

    def needs(self) -> Mapping[str, str]:
        """Require a start if its shape is that of the model."""
        return {"start": "its preset is start"} if self.preset == OF_START else {}

    def model_for(self, tokens: Mapping[str, Any], start: ModelConfig | None = None) -> ModelConfig:
        """Return the model's shape on a tokenizer with these bits and scales.

        Raises:
            ConfigError: there is no text encoder in the folder given, or the model has fewer scale
                embeddings than the tokenizer scales.
        """
        encoder = text_encoder_fields(self.text_encoder)
        preset = start if start and self.preset == OF_START else _SHAPES[self.preset]
        try:
            return with_overrides(preset, {**tokens, **self.model, **encoder})
        except ValidationError as error:  # the preset alone was valid
            what = f"does not fit the tokenizer: {one_line(error.errors()[0]['msg'])}"
            raise ConfigError("pretrain.model", what) from error


class PretrainStage(LoopStage[PretrainConfig]):
    """Latents and captions to a transformer, in phases; with `start`, from a model's weights.

    With `seen`, the tokens of an earlier training, the store `tokens` becomes two: `old`, the files
    all of whose clips are among those, and `new`, the others. A phase mixes them by weight.
    """

    name = "pretrain"
    consumes: ClassVar[Mapping[str, Port]] = {
        "tokens": Port(TOKENS, repeatable=True),
        "tokenizer": Port(MODELS),
        "start": Port(MODELS, optional=True),
        "seen": Port(TOKENS, optional=True),
    }
    produces = MODELS
    config_type = PretrainConfig

    def tools(self) -> Mapping[str, str]:
        """Return digests of the text encoder, and of the code that scores samples, if it does."""
        folder = self.config.text_encoder
        tools = dict(pretrained_fingerprint(folder)) if folder else {}
        if self.config.training.sampling:
            scorer = SAMPLE_SCORER.partition(":")[0]
            tools["code_of_scores"] = digest_json(code_closure(scorer))
        return tools

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            ConfigError: a phase does not fit the stores, the text encoder cannot be loaded, or
                `start` has another shape or text encoder.
            ContractError: the tokens were made by another tokenizer than the one given.
            GateError: the loss of the val rows is above `max_val_nats`, or there are none; or no
                clip is new.
            StageError: several steps in a row had a loss or gradient that is not finite.
        """
        from videoar.stages.pretrain.worker import (
            checkpoint_group,
            new_trainer,
            publish,
            sample_scorer,
            set_text_features,
        )
        from videoar.training.collectives import require_same_step

        config = self.config
        trainer, tokenizer_digest = new_trainer(
            inputs, context.store, rank, config.training, config.model_for, config.resources.cpus
        )
        set_text_features(trainer, inputs, context.store, rank, config.text_encoder)
        resume(rank, trainer.load)
        require_same_step(self.name, trainer.step, trainer.model.device)
        with Checkpoints(rank, checkpoint_group(trainer, rank)) as checkpoints:
            scorer = sample_scorer(trainer, inputs, context.store, rank, SAMPLE_SCORER)
            self._train(trainer, rank, checkpoints, scorer)
        return publish(trainer, rank, inputs, context.store, tokenizer_digest, config.max_val_nats)

    def _train(
        self,
        trainer: "TransformerTrainer",
        rank: RankContext,
        checkpoints: Checkpoints,
        score_samples: "Callable[[TransformerTrainer], None]",
    ) -> None:
        """Take all steps, going back to the last checkpoint after a spike of the loss."""
        from videoar.training.collectives import barrier
        from videoar.training.spikes import LossSpikeError

        trainer.is_preempted = rank.is_preempted
        had_notice = False

        def after_step(_: object) -> None:
            nonlocal had_notice
            score_samples(trainer)  # before the checkpoint, which has the history
            rank.report(trainer.step, trainer.expected_steps, trainer.metrics, trainer.history)
            is_new_notice = trainer.has_notice and not had_notice
            had_notice = trainer.has_notice
            # At the end of a phase, too: a rollback then never leaves its phase.
            is_due = trainer.step % self.config.checkpoint_every == 0 or trainer.is_at_phase_end
            if is_due or is_new_notice:
                # Here it raises on all ranks alike; in `save`, it would on rank 0 alone.
                trainer.read_metrics()
                checkpoints.save(trainer.step, trainer.save)

        if trainer.step == 0 and self.config.training.spike:
            checkpoints.save(0, trainer.save)
        while True:
            try:
                return trainer.run(after_step)
            except LossSpikeError as spike:
                checkpoints.wait()
                barrier()  # the other ranks read the checkpoint that rank 0 has just committed
                trainer.roll_back(partial(resume, rank), spike)
