"""Generate files from the contracts: `python -m videoar.contracts.codegen [--check]`.

schemas/<name>.v<major>.json   JSON Schema of one row
schemas/commit.v1.json         JSON Schema of a commit in the Delta log
schemas/TABLES.md              documentation of all tables
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from videoar.contracts.contract import Column, Contract, contract_ids, load_contract, schemas_folder
from videoar.contracts.generated import DRAFT, markdown_row, write_or_check
from videoar.core.types import Commit

_SCALARS: dict[pa.DataType, dict[str, Any]] = {
    pa.string(): {"type": "string"},
    pa.bool_(): {"type": "boolean"},
    pa.float32(): {"type": "number"},
    pa.float64(): {"type": "number"},
    pa.binary(): {"type": "string", "contentEncoding": "base64"},  # JSON has no bytes
    pa.int16(): {"type": "integer", "minimum": -(2**15), "maximum": 2**15 - 1},
    pa.int32(): {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    pa.int64(): {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
}


def type_schema(arrow_type: pa.DataType) -> dict[str, Any]:
    """Return the JSON Schema of one Arrow type; bytes are base64 text."""
    if pa.types.is_list(arrow_type):
        return {"type": "array", "items": type_schema(arrow_type.value_type)}
    if pa.types.is_map(arrow_type):
        return {"type": "object", "additionalProperties": type_schema(arrow_type.item_type)}
    if pa.types.is_struct(arrow_type):
        fields = {field.name: type_schema(field.type) for field in arrow_type}
        return {"type": "object", "properties": fields, "additionalProperties": False}
    return _SCALARS[arrow_type]


def _column_schema(column: Column) -> dict[str, Any]:
    checks = column.checks
    rules = {
        "minimum": checks.min,
        "maximum": checks.max,
        "enum": list(checks.enum) if checks.enum else None,
        "pattern": checks.regex,
    }
    schema = type_schema(column.field.type) | {k: v for k, v in rules.items() if v is not None}
    if column.nullable:  # anyOf: the checks hold for values, not for null
        schema = {"anyOf": [schema, {"type": "null"}]}
    unit = f" Unit: {column.unit}." if column.unit else ""
    return {**schema, "description": column.description + unit}


def row_schema(contract: Contract) -> dict[str, Any]:
    """Return the JSON Schema of one row of a contract."""
    # additionalProperties false: rows are checked against one version of a contract
    return {
        "$schema": DRAFT,
        "title": contract.id,
        "description": contract.description,
        "type": "object",
        "properties": {column.name: _column_schema(column) for column in contract.columns},
        "required": [column.name for column in contract.columns if not column.nullable],
        "additionalProperties": False,
    }


def tables_page(contracts: list[Contract]) -> str:
    """Return the Markdown page of all tables."""
    lines = ["# Tables", "", "Generated from the YAML files; do not edit.", ""]
    for contract in contracts:
        key = ", ".join(contract.primary_key)
        lines += [f"## {contract.id}", "", contract.description, ""]
        lines += [f"Owner: {contract.owner}. Primary key: {key}.", ""]
        lines += ["| column | type | null | unit | checks | |", "|---|---|---|---|---|---|"]
        lines += [_table_row(column) for column in contract.columns] + [""]
    return "\n".join(lines)


def _table_row(column: Column) -> str:
    checks = column.checks.model_dump(mode="json", exclude_none=True)
    rules = "; ".join(f"{name} {_plain(value)}" for name, value in checks.items())
    null = "yes" if column.nullable else "no"
    cells = (column.name, f"`{column.type}`", null, column.unit, rules, column.description)
    return markdown_row(cells)


def _plain(value: float | str | list[Any]) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def generated_files() -> dict[str, str]:
    """Return the content of every generated file, by its name in the schemas folder."""
    contracts = [load_contract(contract_id) for contract_id in contract_ids()]
    documents = {c.id.replace("@", ".v") + ".json": row_schema(c) for c in contracts}
    documents["commit.v1.json"] = {"$schema": DRAFT, **Commit.model_json_schema()}
    texts = {name: json.dumps(document, indent=2) + "\n" for name, document in documents.items()}
    return texts | {"TABLES.md": tables_page(contracts)}


def main(arguments: list[str], write: Callable[[str], object]) -> int:
    """Write the generated files, or with `--check` list the stale ones; return an exit code."""
    module = "videoar.contracts.codegen"
    return write_or_check(module, schemas_folder(), generated_files(), arguments, write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stderr.write))
