"""What a run is made with: code, and files that options name; a resume must not mix two of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json
from videoar.core.types import Json
from videoar.pipeline.fingerprint import code_closure, differences
from videoar.pipeline.registry import Registry
from videoar.pipeline.spec import StageSpec
from videoar.records.run_record import last_driver
from videoar.runner.decide import build
from videoar.storage.store import Store

_LISTED = 4
"""chosen: candidates in one error line; a refactoring changes a hundred modules."""


def made_with(
    stages: Iterable[StageSpec], tools: Mapping[str, Mapping[str, str]], registry: Registry
) -> dict[str, dict[str, Json]]:
    """Return the digests of the code, the files and the options that stages use.

    Args:
        stages: of a run.
        tools: what `Stage.tools` returns, by the name of the stage.
        registry: known stages.

    Returns:
        `code`, by module; `stages`, by name: `tools`, and `config`, which has the content of what
        is named, such as a policy.
    """
    code: dict[str, Json] = {}
    digests: dict[str, Json] = {}
    for spec in stages:
        stage = build(spec, registry)
        code |= code_closure(type(stage).__module__)
        config = digest_json(stage.config.semantic())
        digests[spec.name] = {"tools": dict(tools[spec.name]), "config": config}
    return {"code": code, "stages": digests}


def find_drift(
    store: Store, run_id: str, current: dict[str, dict[str, Json]], *, accept: bool
) -> tuple[str, ...]:
    """Return what differs from what a run was made with so far; nothing for a new run.

    Raises:
        ConfigError: something does, and it is not accepted.
    """
    recorded: Any = last_driver(store, run_id).get("made_with")
    if recorded is None:  # a new run, or one of an older version
        return ()
    # a stage after the one at which the run ended so far is new, not changed
    kept = recorded["stages"].keys() & current["stages"].keys()
    old, new = (
        {**made, "stages": {name: made["stages"][name] for name in kept}}
        for made in (recorded, current)
    )
    changed = tuple(entry["component"] for entry in differences(old, new))
    if changed and not accept:
        more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
        what = f"changed since it started: {', '.join(changed[:_LISTED])}{more}"
        hint = "resume with --accept-drift, or start a new run"
        raise ConfigError(f"run {run_id}", what, hint)
    return changed
