"""Worker of `pretrain`: builds the trainer of one rank and publishes its model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from videoar.core.errors import ContractError
from videoar.model.device import device, limit_threads
from videoar.model.pretrained.text_encoder import require_same_text_encoder
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.pipeline.stage import Inputs, Output, RankContext
from videoar.storage.reader import key_value_metadata, read_footers
from videoar.storage.store import Store
from videoar.training.config import TransformerTraining
from videoar.training.data.text_features import prepare_text_features
from videoar.training.data.token_loader import TokenLoader
from videoar.training.model_store import load_tokenizer, load_transformer, publish_model
from videoar.training.transformer import TransformerTrainer


def new_trainer(
    inputs: Inputs,
    store: Store,
    rank: RankContext,
    training: TransformerTraining,
    model_for: Callable[[Mapping[str, Any]], ModelConfig],
    cpus: float,
) -> tuple[TransformerTrainer, str]:
    """Return the trainer of one rank at step 0, and the digest of the tokenizer.

    Args:
        inputs: snapshots of the ports `tokens`, `tokenizer` and perhaps `start`.
        store: where models are read.
        rank: which slice of the batches to train on.
        training: how.
        model_for: returns the model's shape, given `num_bits`, `scales` and `time_stride`.
        cpus: cores of this rank.

    Raises:
        ContractError: see `require_tokens_of`; or `start` holds no transformer.
    """
    limit_threads(cpus)
    tokenizer, tokenizer_digest = load_tokenizer(inputs["tokenizer"], store)
    require_tokens_of(inputs, tokenizer.cfg, tokenizer_digest)
    torch.manual_seed(training.seed)  # of the first weights, equal on all ranks
    shared = ("num_bits", "scales", "time_stride")
    model = VideoAR(model_for({name: getattr(tokenizer.cfg, name) for name in shared}))
    if "start" in inputs:
        start, _ = load_transformer(inputs["start"], store)
        require_same_text_encoder(start.cfg, model.cfg)
        # Fits although a later phase has more scales: embeddings exist for `max_scales` of them.
        model.load_state_dict(start.state_dict())
    # moved after the start: random numbers of a GPU differ from those of the CPU
    model.to(device())

    def loader(batch_size: int) -> TokenLoader:
        return TokenLoader(inputs["tokens"], batch_size, training.seed, rank.index, rank.world_size)

    return TransformerTrainer(model, training, loader, rank.index), tokenizer_digest


def set_text_features(
    model: VideoAR, inputs: Inputs, store: Store, rank: RankContext, folder: str
) -> None:
    """Give a model the features of all captions of the token stores; "" for its own encoder.

    Raises:
        ConfigError: the text encoder cannot be loaded.
    """
    if not folder:
        return
    captions = {
        caption or ""
        for port, tokens in inputs.items()
        if port.partition(".")[0] == "tokens"
        for table in tokens.read(["caption"])
        for caption in table["caption"].unique().to_pylist()
    }
    ranks = rank.index, rank.world_size
    model.set_text_encoder(prepare_text_features(store, model.cfg, folder, captions, *ranks))


def publish(trainer: TransformerTrainer, store: Store, tokenizer_digest: str) -> Output:
    """Store the averaged weights; return the row of `models@1`."""
    metrics = {name: value for name, value in trainer.history[-1].items() if name != "step"}
    rows = publish_model(
        trainer.model,
        store,
        weights=trainer.average.weights,
        step=trainer.step,
        metrics=metrics,
        history=trainer.history,
        tokenizer_digest=tokenizer_digest,
    )
    return Output(rows, metrics=metrics)


def require_tokens_of(inputs: Inputs, tokenizer: TokenizerConfig, digest: str) -> None:
    """Reject tokens of another tokenizer.

    Checked in the footers of the files, which keep the tokenizer's digest when `compact` rewrites
    them; the snapshot's provenance would name the last stage only.

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
    expected = (*tokenizer.scales[-1], tokenizer.num_bits)
    if shapes != {expected}:
        raise ContractError(tokens.id, f"has (h, w, k) {sorted(shapes)}, the tokenizer {expected}")
