"""Read evaluation sets (`evalsets@1`): the fixed clips and prompts that models are compared on."""

import json
from collections.abc import Sequence

from videoar.core.errors import GateError
from videoar.core.ids import digest_json, seed_from
from videoar.core.types import Row
from videoar.storage.ledger import Refs
from videoar.storage.snapshot import Snapshot
from videoar.storage.takedown import find_withdrawal

CLIP, PROMPT = "clip", "prompt"
REFERENCE, FLOOR = "reference", "floor"


def clip_rows(evalset: Snapshot, role: str | None = None) -> list[Row]:
    """Return the rows of `clips@1` of a set: those of the reference or of the floor, or all.

    Raises:
        GateError: a takedown has removed a source of the set.
    """
    rows = read_evalset(evalset)
    return [
        json.loads(row["clip_json"])
        for row in rows
        if row["kind"] == CLIP and role in {None, row["role"]}
    ]


def prompt_rows(evalset: Snapshot) -> list[Row]:
    """Return the prompts of a set as rows of `prompts@1`, each with its seed.

    Raises:
        GateError: a takedown has removed a source of the set.
    """
    return [
        {"prompt_id": row["item_id"], **{key: row[key] for key in ("label", "index", "seed")},
         "prompt": row["prompt"] or ""}
        for row in read_evalset(evalset)
        if row["kind"] == PROMPT
    ]  # fmt: skip


def protocol_name(evalset: Snapshot) -> str:
    """Return the name of the protocol of a set."""
    names: list[str] = evalset.table(["protocol"])["protocol"].to_pylist()
    return names[0]


def compared(samples: Sequence[Row], num: int) -> list[Row]:
    """Return the samples of a distance to `num` real clips, all if there are fewer.

    Ordered by a hash of prompt, index and seed: the same ones of every model.

    Args:
        samples: rows of `samples@1`.
        num: clips of the reference.
    """
    keys = ("prompt", "index", "seed")
    return sorted(samples, key=lambda row: seed_from("compared", *(row[k] for k in keys)))[:num]


def content_digest(evalset: Snapshot) -> str:
    """Return the digest of what is compared: content of the clips, prompts, seeds, protocol.

    Neither the snapshots that the rows were chosen from nor the order of the rows count.
    """
    rows = [
        [row[key] for key in ("kind", "item_id", "index", "role", "prompt", "label", "seed")]
        + [row["protocol"], _video(row)]
        for row in read_evalset(evalset)
    ]
    return digest_json(sorted(rows, key=str))


def _video(row: Row) -> str | None:
    """Return the digest of a clip's stored video; a clip that is read from its source has none."""
    video: str | None = json.loads(row["clip_json"] or "{}").get("video_sha256")
    return video


def read_evalset(evalset: Snapshot) -> list[Row]:
    """Return the rows of a set.

    Raises:
        GateError: a takedown has removed a source of the set.
    """
    require_intact(evalset)
    rows: list[Row] = evalset.table().to_pylist()
    return rows


def require_intact(evalset: Snapshot) -> None:
    """Check that no takedown has removed a clip of a set: without it, no score is comparable.

    Raises:
        GateError: names the set and the source.
    """
    for file in evalset.files:
        withdrawal = find_withdrawal(evalset.ledger, file.key)
        if withdrawal is not None:
            refs = Refs(evalset.ledger).by_target().get(evalset.id, [])
            names = ", ".join(refs) or evalset.id
            what = f"its source {withdrawal.source} was taken down, nothing can be compared on it"
            hint = "choose another set: other names in the option pin and in the input of frozen"
            raise GateError(f"evaluation set {names}", what, hint)
