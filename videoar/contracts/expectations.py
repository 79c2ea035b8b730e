"""Great Expectations suites generated from data contracts, with checks of a whole table.

A contract checks the values of one column; `TableChecks` adds properties of the whole table.
Importing great_expectations takes 4 to 13 seconds, so the functions import it when they need it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from videoar.contracts.contract import Contract
from videoar.core.settings import set_defaults
from videoar.core.types import Frozen

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

_SHOWN_CHARS = 80  # chosen: the failures of a gate are one error line


class TableChecks(Frozen):
    """Expectations on a whole table, beyond those of its contract."""

    unique: tuple[str, ...] = ()
    """Columns without repeated values."""
    increasing: tuple[tuple[str, str], ...] = ()
    """Pairs of columns, the second larger than the first in each row."""
    values: Mapping[str, tuple[int, ...]] = {}
    """Allowed values per column."""
    rows: tuple[int, int]
    """Fewest and most rows."""


class Expectation(Frozen):
    """One expectation and whether it held."""

    name: str
    """Type of the expectation, e.g. `expect_column_values_to_be_unique`."""
    on: str
    """The column, or the arguments of an expectation on the table."""
    passed: bool
    observed: str
    """Values that break it, or the observed value."""


@dataclass(frozen=True)
class CheckReport:
    """Result of validating a table."""

    success: bool
    expectations: tuple[Expectation, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line per failed expectation."""
        failed = (e for e in self.expectations if not e.passed)
        return tuple(f"{e.name} on {e.on}: observed {e.observed}" for e in failed)


def prepare() -> None:
    """Import great_expectations in the background, while the rows of a `check` are made."""
    set_defaults(GX_ANALYTICS_ENABLED="false")  # read at import; it would post to the network
    name = "great_expectations.expectations"
    Thread(target=import_module, args=(name,), name="import", daemon=True).start()


def check(table: pa.Table, contract: Contract, checks: TableChecks) -> CheckReport:
    """Validate a table against its contract and further checks."""
    set_defaults(GX_ANALYTICS_ENABLED="false")  # read at import; it would post to the network
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # ephemeral: no project folder is created in the working directory
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    expectations = list(_expectations(contract, checks))
    suite = gx.ExpectationSuite(name=contract.id, expectations=expectations)
    # pandas: GX has no Arrow backend
    frame = table.select([column.name for column in contract.columns]).to_pandas()
    batch = (
        context.data_sources
        .add_pandas("tables")
        .add_dataframe_asset(contract.id)
        .add_batch_definition_whole_dataframe("all rows")
        .get_batch({"dataframe": frame})
    )
    result = batch.validate(suite)
    return CheckReport(bool(result.success), tuple(map(_read, result.results)))


def _expectations(contract: Contract, table_checks: TableChecks) -> Iterator[Any]:
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
    for name in table_checks.unique:
        yield gxe.ExpectColumnValuesToBeUnique(column=name)
    for low, high in table_checks.increasing:
        yield gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A=high, column_B=low)
    for name, allowed in table_checks.values.items():
        yield gxe.ExpectColumnValuesToBeInSet(column=name, value_set=list(allowed))
    fewest, most = table_checks.rows
    yield gxe.ExpectTableRowCountToBeBetween(min_value=fewest, max_value=most)


def _read(item: "ExpectationValidationResult") -> Expectation:
    config: Any = item.expectation_config  # Optional by its type, set in every result
    # batch_id is random per run and would make equal reports differ
    arguments = {k: v for k, v in config.kwargs.items() if k != "batch_id"}
    column = arguments.pop("column", None)
    on = column or ", ".join(f"{k}={v}" for k, v in arguments.items())
    observed = item.result.get("partial_unexpected_list") or item.result.get("observed_value")
    return Expectation(
        name=config.type,
        on=on,
        passed=bool(item.success),
        observed=str(observed)[:_SHOWN_CHARS] if observed is not None else "nothing unexpected",
    )
