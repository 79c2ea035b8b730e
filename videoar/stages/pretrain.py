"""Train the transformer on a token store: tokens to a model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from videoar.contracts.names import MODELS, TOKENS
from videoar.core.errors import ContractError
from videoar.model.transformer.config import PRESETS, ModelConfig
from videoar.pipeline.context import StageContext
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
from videoar.storage.reader import key_value_metadata, read_footers
from videoar.training.config import TransformerTraining

if TYPE_CHECKING:
    from videoar.model import TokenizerConfig, VideoAR


class PretrainConfig(StageConfig):
    """Options of `pretrain`."""

    preset: Annotated[str, preset_name(PRESETS)] = "tiny"
    """Named size."""
    model: Annotated[dict[str, Any], valid_overrides(PRESETS)] = Field(default_factory=dict)
    """Fields of the model that differ from the preset; bits and scales follow the tokenizer."""
    training: TransformerTraining
    """Phases, optimizer, corruption."""
    checkpoint_every: int = runtime(500, ge=1)
    """Steps between checkpoints; one more follows the last step."""

    def model_for(self, tokens: Mapping[str, Any]) -> ModelConfig:
        """Return the model's shape on a tokenizer with these bits and scales."""
        return with_overrides(PRESETS[self.preset], {**tokens, **self.model})


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

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        """Train to the last step, from the newest checkpoint if there is one."""
        import torch

        from videoar.training.data.token_loader import TokenLoader
        from videoar.training.model_store import load_tokenizer, load_transformer, publish_model
        from videoar.training.transformer import TransformerTrainer

        training = self.config.training
        torch.set_num_threads(max(1, int(self.config.resources.cpus)))
        tokenizer, tokenizer_digest = load_tokenizer(inputs["tokenizer"], context.store)
        check_tokens(inputs, tokenizer.cfg, tokenizer_digest)
        start = load_transformer(inputs["start"], context.store)[0] if "start" in inputs else None
        model = self._model(tokenizer.cfg, training.seed, start)

        def loader(batch_size: int) -> TokenLoader:
            tokens = inputs["tokens"]
            return TokenLoader(tokens, batch_size, training.seed, rank.index, rank.world_size)

        trainer = TransformerTrainer(model, training, loader, rank.index)
        resume(rank, trainer.load)

        def after_step(trainer: TransformerTrainer, metrics: Mapping[str, float]) -> None:
            rank.report(trainer.step, training.steps, metrics)
            every = self.config.checkpoint_every
            is_due = trainer.step % every == 0 or trainer.step == training.steps
            if is_due and rank.index == 0:
                save_checkpoint(rank, trainer.step, trainer.save)

        trainer.run(after_step)
        if rank.index:
            return None
        last = {name: value for name, value in trainer.history[-1].items() if name != "step"}
        rows = publish_model(
            model,
            context.store,
            weights=trainer.average.weights,
            step=trainer.step,
            metrics=last,
            history=trainer.history,
            tokenizer_digest=tokenizer_digest,
        )
        return Output(rows, metrics=last)

    def _model(self, tokens: "TokenizerConfig", seed: int, start: "VideoAR | None") -> "VideoAR":
        import torch

        from videoar.model import VideoAR
        from videoar.model.device import device

        torch.manual_seed(seed)
        own = ("num_bits", "scales", "time_stride")
        shape = {name: getattr(tokens, name) for name in own}
        model = VideoAR(self.config.model_for(shape))
        if start is not None:
            model.load_state_dict(start.state_dict())  # scales beyond the earlier phase's are new
        model.to(device())
        return model


def check_tokens(inputs: Inputs, tokenizer: "TokenizerConfig", digest: str) -> None:
    """Refuse tokens that another tokenizer made.

    The files themselves say who made them, whatever has rearranged them since.

    Raises:
        ContractError: a file names another tokenizer or none, or rows have another shape.
    """
    tokens = inputs["tokens"]
    footers = read_footers(tokens.objects, tokens.files)
    for file, footer in zip(tokens.files, footers, strict=True):
        made_by = key_value_metadata(footer).get("tokenizer_digest")
        if made_by != digest:
            what = f"{file.key} was made by tokenizer {made_by}, not {digest}"
            hint = f"tokenize the clips again, by {inputs['tokenizer'].id}"
            raise ContractError(tokens.id, what, hint)
    columns = tokens.table(["h", "w", "k"], footers=footers)
    shapes = set(zip(*columns.to_pydict().values(), strict=True))
    wanted = (*tokenizer.scales[-1], tokenizer.num_bits)
    if shapes != {wanted}:
        raise ContractError(tokens.id, f"has (h, w, k) {sorted(shapes)}, the tokenizer {wanted}")
