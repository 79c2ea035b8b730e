"""Worker of `pretrain`: builds the trainer of one rank and publishes its model."""

import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import torch

from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.core.lazy import imported
from videoar.model.device import device, limit_threads
from videoar.model.pretrained.text_encoder import require_same_text_encoder
from videoar.model.transformer.config import OF_TOKENIZER, ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.pipeline.stage import Inputs, Output, RankContext
from videoar.stages.pretrain.data import StoreData, open_stores, token_snapshots
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.collectives import all_reduce_sum
from videoar.training.config import TransformerTraining
from videoar.training.data.text_features import prepare_text_features
from videoar.training.model_store import (
    clip_shape,
    load_tokenizer,
    load_transformer,
    publish_model,
)
from videoar.training.objective import PADDING_CAPTION
from videoar.training.parallel import gathered, is_sharded
from videoar.training.transformer import TransformerTrainer

_ScorerClass: TypeAlias = "Callable[..., Callable[[], dict[str, float]]]"
_OF_A_START = {"scales", "history", "window", "text_encoder", "text_encoder_name"}
"""Fields in which a model may differ from its start, as no weight depends on them, and those of the
text encoder, which are checked on their own: the folder may have another name."""


def new_trainer(
    inputs: Inputs,
    store: Store,
    rank: RankContext,
    training: TransformerTraining,
    model_for: Callable[[Mapping[str, Any], ModelConfig | None], ModelConfig],
    cpus: float,
) -> tuple[TransformerTrainer, str]:
    """Return the trainer of one rank at step 0, and the digest of the tokenizer.

    Args:
        inputs: snapshots of the ports `tokens`, `tokens.NAME`, `tokenizer` and perhaps `start`.
        store: where models are read.
        rank: which slice of the batches to train on.
        training: how.
        model_for: returns the model's shape, given `num_bits`, `scales` and `time_stride`, and the
            shape of `start`.
        cpus: cores of this rank.

    Raises:
        ConfigError: a phase does not fit the stores, or the model the tokenizer or `start`.
        ContractError: tokens, or `start`, of another tokenizer; or `start` holds no transformer.
    """
    limit_threads(cpus)
    tokenizer, tokenizer_digest = load_tokenizer(inputs["tokenizer"], store)
    start = load_transformer(inputs["start"], store)[0] if "start" in inputs else None
    of_tokenizer = {name: getattr(tokenizer.cfg, name) for name in OF_TOKENIZER}
    cfg = model_for(of_tokenizer, start.cfg if start else None)
    try:
        cfg.require_fit(tokenizer.cfg, any_scales=True)
    except ValueError as error:
        raise ConfigError("pretrain.model", str(error), "leave it out") from error
    data = StoreData(open_stores(inputs, tokenizer.cfg, tokenizer_digest), training, rank)
    data.check(cfg)
    torch.manual_seed(training.seed)  # of the first weights, equal on all ranks
    model = VideoAR(cfg)
    if start is not None:
        _require_same_tokenizer(inputs["start"], tokenizer_digest)
        require_same_text_encoder(start.cfg, cfg)
        _require_same_shape(start.cfg, cfg)
        model.load_state_dict(start.state_dict())
    # moved after the start: random numbers of a GPU differ from those of the CPU
    model.to(device())
    return TransformerTrainer(model, training, data), tokenizer_digest


def set_text_features(
    trainer: TransformerTrainer, inputs: Inputs, store: Store, rank: RankContext, folder: str
) -> None:
    """Give the model the features of all prompts of the token stores; "" for its own encoder.

    Raises:
        ConfigError: the text encoder cannot be loaded.
    """
    if not folder:
        return
    tables = (
        table.group_by(["caption", "label"]).aggregate([])
        for tokens in token_snapshots(inputs).values()
        for table in tokens.read(["caption", "label"])
    )
    prompts = {
        trainer.training.prompt(row["caption"], row["label"])
        for table in tables
        for row in table.to_pylist()
    }
    if trainer.training.shard:
        prompts.add(PADDING_CAPTION)
    cfg, ranks = trainer.model.cfg, (rank.index, rank.world_size)
    trainer.model.set_text_encoder(prepare_text_features(store, cfg, folder, prompts, *ranks))


def sample_scorer(
    trainer: TransformerTrainer, inputs: Inputs, store: Store, rank: RankContext, scorer_path: str
) -> Callable[[TransformerTrainer], None]:
    """Return what adds the scores of samples to the history after a step at which they are due.

    Raises:
        ConfigError: see `SampleScorer`.
    """
    scoring = trainer.training.sampling
    if scoring is None or rank.index:
        return lambda _: None
    # by name: with an import, a training would run again when code of scores has changed
    scorer_class = cast("_ScorerClass", imported(scorer_path))
    tokenizer, _ = load_tokenizer(inputs["tokenizer"], store, device())
    stores = [snapshot for _, snapshot in sorted(token_snapshots(inputs).items())]
    scorer = scorer_class(trainer, scoring, tokenizer, stores)

    def score(trainer: TransformerTrainer) -> None:
        if trainer.step % scoring.every == 0 or trainer.is_done:
            trainer.log(trainer.step, scorer())

    return score


def _require_same_tokenizer(start: Snapshot, digest: str) -> None:
    """Reject a start whose bits mean something else, though its weights would fit."""
    of_start = start.table(["tokenizer_digest"])["tokenizer_digest"][0].as_py()
    if of_start != digest:
        what = f"{start.id} was trained on tokens of tokenizer {of_start}, these are of {digest}"
        hint = "give the tokenizer and the tokens of the start, or train without start"
        raise ContractError("pretrain.start", what, hint)


def _require_same_shape(start: ModelConfig, cfg: ModelConfig) -> None:
    """Reject a start whose weights would not fit or would mean something else."""
    for name in sorted(type(cfg).model_fields.keys() - _OF_A_START):
        of_start, own = getattr(start, name), getattr(cfg, name)
        if of_start != own:
            hint = f"set model.{name} to {of_start}, or train without start"
            raise ConfigError(f"model.{name}", f"is {own}, but the start has {of_start}", hint)


def checkpoint_group(trainer: TransformerTrainer, rank: RankContext) -> str:
    """Return the group of `Checkpoints`: a random text if every rank saves a part, else ""."""
    if not is_sharded(trainer.model):
        return ""
    number = 0 if rank.index else secrets.randbits(60)
    return str(int(all_reduce_sum(torch.tensor(number).to(device()))))


def publish(
    trainer: TransformerTrainer,
    rank: RankContext,
    inputs: Inputs,
    store: Store,
    tokenizer_digest: str,
    max_val_nats: float | None,
) -> Output | None:
    """Store the averaged weights; return the row of `models@1` on rank 0. All ranks take part.

    Raises:
        GateError: there is a maximum, and the loss of the val rows is above it or was not measured.
    """
    weights = gathered(trainer.weights, is_kept=rank.index == 0)
    if rank.index:
        return None
    if max_val_nats is not None:
        _check_gate(trainer.held_out.get("val/loss"), max_val_nats)
    is_block = {name for name in trainer.held_out if "/block_" in name}
    held_out = {name: v for name, v in trainer.held_out.items() if name not in is_block}
    metrics = trainer.metrics | held_out
    last_phase, cfg = trainer.training.phases[-1], trainer.model.cfg
    rows = publish_model(
        trainer.model,
        store,
        weights=weights,
        step=trainer.step,
        metrics=metrics,
        history=trainer.history,
        tokenizer_digest=tokenizer_digest,
        clips=clip_shape(token_snapshots(inputs).values(), last_phase.num_frames, cfg.time_stride),
    )
    return Output(rows, metrics=metrics)


def _check_gate(loss: float | None, max_val_nats: float) -> None:
    where = "pretrain.max_val_nats"
    if loss is None:
        what = "the val loss was not measured"
        raise GateError(
            where, what, "add val clips, set training.validation.points, or leave it out"
        )
    if not loss <= max_val_nats:
        what = f"the val loss is {loss:.4f} nats per bit, the maximum {max_val_nats}"
        raise GateError(where, what, "train on more data, or raise it")
