"""Verbs on data: contracts and stage types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from videoar.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from videoar.contracts.contract import Contract
    from videoar.pipeline.stage_reference import StageReference


def schema(contract: str) -> Contract:
    """Return a data contract by id, e.g. `clips@1`; without `@` the newest major version.

    Raises:
        ConfigError: no such contract.
    """
    from videoar.contracts.contract import contract_ids, load_contract

    known = contract_ids()
    matches = [name for name in known if contract in (name, name.partition("@")[0])]
    if not matches:
        # quotes for an empty name: an error line without its subject could not be understood
        raise ConfigError(contract or "''", "no such contract", did_you_mean(contract, known))
    # as numbers: `@10` is newer than `@9`
    return load_contract(max(matches, key=lambda name: int(name.partition("@")[2])))


def stages(name: str | None = None) -> list[StageReference]:
    """Return the input ports, output contract and options of a stage type, or of all types.

    Raises:
        ConfigError: no stage of this type.
    """
    from videoar.pipeline.stage_reference import stage_references

    return stage_references([name] if name else [])
