"""Quality gates: Great Expectations suites made from data contracts.

A contract already says what a column may hold; a gate adds what only the whole table shows. The
import costs seconds, so it happens in here and nowhere else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from videoar.contracts.contract import Contract
from videoar.core.settings import set_defaults
from videoar.core.types import Frozen


class Gate(Frozen):
    """Expectations on a whole table, beyond those of its contract."""

    unique: tuple[str, ...] = ()
    """Columns without repeated values."""
    increasing: tuple[tuple[str, str], ...] = ()
    """Pairs of columns, the second larger than the first in each row."""
    values: Mapping[str, tuple[int, ...]] = {}
    """Allowed values per column."""
    rows: tuple[int, int]
    """Fewest and most rows."""


@dataclass(frozen=True)
class CheckReport:
    """What a gate found."""

    success: bool
    failures: tuple[str, ...]
    """One line per failed expectation."""
    html: str
    """The result as a page."""


def check(table: pa.Table, contract: Contract, gate: Gate) -> CheckReport:
    """Validate a table against its contract and a gate."""
    set_defaults(GX_ANALYTICS_ENABLED="false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    suite = gx.ExpectationSuite(name=contract.id, expectations=list(_expectations(contract, gate)))
    frame = table.select([column.name for column in contract.columns]).to_pandas()
    batch = (
        context.data_sources
        .add_pandas("tables")
        .add_dataframe_asset(contract.id)
        .add_batch_definition_whole_dataframe("all rows")
        .get_batch({"dataframe": frame})
    )
    result = batch.validate(suite)
    failures = tuple(_line(item) for item in result.results if not item.success)
    return CheckReport(bool(result.success), failures, _page(result))


def _expectations(contract: Contract, gate: Gate) -> Iterator[Any]:
    import great_expectations.expectations as gxe

    for column in contract.columns:
        name, checks = column.name, column.checks
        if not column.nullable:
            yield gxe.ExpectColumnValuesToNotBeNull(column=name)
        if checks.enum is not None:
            yield gxe.ExpectColumnValuesToBeInSet(column=name, value_set=list(checks.enum))
        if checks.regex is not None:
            yield gxe.ExpectColumnValuesToMatchRegex(column=name, regex=checks.regex)
        if checks.min is not None or checks.max is not None:
            yield gxe.ExpectColumnValuesToBeBetween(
                column=name, min_value=checks.min, max_value=checks.max
            )
    for name in gate.unique:
        yield gxe.ExpectColumnValuesToBeUnique(column=name)
    for low, high in gate.increasing:
        yield gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A=high, column_B=low)
    for name, allowed in gate.values.items():
        yield gxe.ExpectColumnValuesToBeInSet(column=name, value_set=list(allowed))
    fewest, most = gate.rows
    yield gxe.ExpectTableRowCountToBeBetween(min_value=fewest, max_value=most)


def _line(item: Any) -> str:  # noqa: ANN401 - great_expectations has no types
    """Say which expectation failed, where, and what was found."""
    asked = {k: v for k, v in item.expectation_config.kwargs.items() if k != "batch_id"}
    where = asked.pop("column", None) or ", ".join(f"{k}={v}" for k, v in asked.items())
    found = item.result.get("partial_unexpected_list") or item.result.get("observed_value")
    return f"{item.expectation_config.type} on {where}: found {str(found)[:80]}"


def _page(result: Any) -> str:  # noqa: ANN401 - great_expectations has no types
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    html: str = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    return html
