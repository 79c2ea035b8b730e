"""The card of a model of a store: every value is read from its commits, rows and run records."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from videoar.admin.decisions import newest_decision
from videoar.admin.model_card import Data, ModelCard, Network, Score, Sources, TextEncoder
from videoar.contracts.names import MODELS, SCORES, TOKENS
from videoar.core.errors import ConfigError, ContractError
from videoar.core.ids import digest_json
from videoar.core.types import Row
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.transformer.config import ModelConfig
from videoar.records.lineage import lineage
from videoar.records.names import find_snapshot
from videoar.records.run_history import stage_parts
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.model_store import find_tokenizer
from videoar.training.prompts import PromptTemplates

_NOT_STATED = "not stated"
_MAX_LABELS = 1000  # chosen: Kinetics has 700; a label per video is none to choose from


def card_of(store: Store, name: str) -> ModelCard:
    """Return the card of a transformer of a store.

    Raises:
        ConfigError: the name is no transformer, or the store does not have its tokenizer.
        SnapshotNotFoundError: nothing in the store has this name.
    """
    snapshot = find_snapshot(store, name)
    row = model_row(snapshot)
    if row["kind"] != "transformer":
        hint = "name the transformer: its tokenizer belongs to it"
        raise ConfigError(snapshot.id, f"is a {row['kind']}, not a transformer", hint)
    tokenizer = find_tokenizer(store, snapshot, row["tokenizer_digest"])
    config = ModelConfig.model_validate_json(row["config_json"])
    tokenizer_config = TokenizerConfig.model_validate_json(model_row(tokenizer)["config_json"])
    graph = lineage(store, snapshot.id)
    network = _network(store, snapshot)
    training = network.training.get("training", {})
    decision = newest_decision(store, snapshot.id)
    scores = _scores(store, snapshot, decision)
    return ModelCard(
        model=network,
        tokenizer=_network(store, tokenizer),
        text_encoder=TextEncoder(name=config.text_encoder_name, digest=config.text_encoder)
        if config.text_encoder
        else None,
        size_px=tokenizer_config.size_px,
        rate_fps=row["rate_fps"],
        num_frames=row["num_frames"],
        **{name: training[name] for name in PromptTemplates.model_fields if name in training},
        labels=_labels(store, snapshot),
        sampler=_sampler(store, scores),
        data=[
            Data(snapshot=node["id"], contract=node["contract"], rows=node["rows"])
            for node in sorted(graph["nodes"], key=lambda node: str(node["id"]))
            if node["kind"] == "snapshot" and node["contract"] != MODELS
        ],
        sources=_sources(node for node in graph["nodes"] if node["kind"] == "source"),
        # YAML as read here has no NaN
        metrics={name: value for name, value in row["metrics"] if math.isfinite(value)},
        scores=_values(scores),
        gate=decision,
    )


def model_row(snapshot: Snapshot) -> Row:
    """Return the only row of a snapshot of models.

    Raises:
        ConfigError: the snapshot is of another contract.
        ContractError: it has several rows.
    """
    if snapshot.contract != MODELS:
        raise ConfigError(snapshot.id, f"is {snapshot.contract}, not a model")
    rows = snapshot.table().to_pylist()
    if len(rows) != 1:
        raise ContractError(snapshot.id, f"holds {len(rows)} models, not one")
    row: Row = rows[0]
    return row


def _network(store: Store, snapshot: Snapshot) -> Network:
    row, provenance = model_row(snapshot), snapshot.commit.provenance
    parts = stage_parts(store, provenance.run_id, provenance.stage) or {}
    return Network(
        snapshot=snapshot.id,
        training=parts.get("config", {}),
        code=digest_json(parts["code"]) if "code" in parts else "",
        version=provenance.code_version,
        **{name: row[name] for name in ("digest", "num_parameters", "step")},
    )


def _labels(store: Store, model: Snapshot) -> list[str] | None:
    """Return the classes of the tokens; None for more than `_MAX_LABELS`, or without tokens."""
    parents = map(store.snapshot, model.commit.provenance.parents.values())
    stores = [parent for parent in parents if parent.contract == TOKENS]
    tables = (table for tokens in stores for table in tokens.read_available(["label"]))
    found = {label for table in tables for label in table["label"].unique().to_pylist()} - {None}
    return sorted(found) if stores and len(found) <= _MAX_LABELS else None


def _sources(nodes: Iterable[dict[str, Any]]) -> Sources:
    sources = list(nodes)
    licences = Counter(node["licence"] or _NOT_STATED for node in sources)
    forgotten = sum(node["forgotten"] for node in sources)
    by_licence = dict(sorted(licences.items()))
    return Sources(videos=len(sources), forgotten=forgotten, licences=by_licence)


def _scores(store: Store, model: Snapshot, decision: dict[str, Any] | None) -> Snapshot | None:
    """Return the scores that the decision is based on, else the newest ones of the model."""
    made_of = store.snapshot(decision["decision"]).commit.provenance.parents if decision else {}
    if "scores" in made_of:
        return store.snapshot(made_of["scores"])
    graph = lineage(store, model.id, down=True)
    scored = [node for node in graph["nodes"] if node.get("contract") == SCORES]
    newest = max(scored, key=lambda node: str(node["run_id"]), default=None)
    return store.snapshot(newest["id"]) if newest else None


def _values(scores: Snapshot | None) -> dict[str, Score]:
    rows = scores.table().to_pylist() if scores else []
    return {row["metric"]: Score.model_validate(row) for row in rows if row["status"] == "ok"}


def _sampler(store: Store, scores: Snapshot | None) -> dict[str, Any]:
    """Return how the scored samples were drawn."""
    samples = scores.commit.provenance.parents.get("samples") if scores else None
    if samples is None:
        return {}
    rows = store.snapshot(samples).available_rows(["sampler_json"])
    sampler: dict[str, Any] = json.loads(next(rows, {"sampler_json": "{}"})["sampler_json"])
    return sampler
