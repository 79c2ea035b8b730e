"""Data contracts: `schemas/<name>.v<major>.yaml` as frozen models and Arrow schemas.

The YAML file is the only declaration of a table. Arrow schema, row checks, Great Expectations
suites, JSON Schema and documentation are derived from it.
"""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from videoar.contracts.checks import Checks, find_problems
from videoar.core.errors import ConfigError, ContractError
from videoar.core.types import Frozen
from videoar.core.yaml_file import read_mapping

_PRIMITIVES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "double": pa.float64(),  # the name in Delta and Spark
    "binary": pa.binary(),
    "payload": pa.binary(),
}


def arrow_type(text: str) -> pa.DataType:
    """Parse a column type such as `list<struct<key:string,size_bytes:int64>>`.

    Raises:
        ValueError: the text is no type.
    """
    text = text.strip()
    if text in _PRIMITIVES:
        return _PRIMITIVES[text]
    kind, _, inner = text.partition("<")
    if inner.endswith(">"):
        parts = _split(inner[:-1])
        if kind == "list" and len(parts) == 1:
            return pa.list_(arrow_type(parts[0]))
        if kind == "map" and len(parts) == 2:
            return pa.map_(arrow_type(parts[0]), arrow_type(parts[1]))
        if kind == "struct":
            pairs = (part.partition(":") for part in parts)
            return pa.struct([(name.strip(), arrow_type(of)) for name, _, of in pairs])
    known = " ".join(sorted(_PRIMITIVES))
    raise ValueError(f"unknown type {text!r}; known: {known} list<T> map<K,V> struct<name:T,...>")


def _split(text: str) -> list[str]:
    """Split at commas that are not inside inner brackets."""
    parts, depth = [""], 0
    for char in text:
        # `struct<a:map<string,int64>,b:bool>` splits at the last comma only
        depth += (char == "<") - (char == ">")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


class Column(Frozen):
    """One column of a contract."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    type: str
    nullable: bool
    description: str
    unit: str = ""
    checks: Checks = Checks()

    @field_validator("type")
    @classmethod
    def _is_known(cls, value: str) -> str:
        arrow_type(value)
        return value

    @property
    def field(self) -> pa.Field:
        """The column in an Arrow schema."""
        return pa.field(self.name, arrow_type(self.type), nullable=self.nullable)


class Contract(Frozen):
    """Schema and checks of one kind of table."""

    # pydantic would take cached_property for a field without a type
    model_config = ConfigDict(ignored_types=(cached_property,))

    id: str = Field(alias="contract", pattern="^[a-z_]+@[1-9][0-9]*$")
    """`name@major`."""
    description: str
    owner: str
    primary_key: tuple[str, ...] = Field(min_length=1)
    columns: tuple[Column, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_agree(self) -> "Contract":
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"columns declared twice: {', '.join(twice)}")
        unknown = sorted(set(self.primary_key) - set(names))
        if unknown:
            raise ValueError(f"primary_key names no column: {', '.join(unknown)}")
        return self

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The schema of a table in memory; `payload` is plain binary there."""
        return pa.schema([column.field for column in self.columns])

    @property
    def payloads(self) -> tuple[str, ...]:
        """Names of the columns stored in the direct layout."""
        return tuple(column.name for column in self.columns if column.type == "payload")

    def conform(self, table: pa.Table, where: str) -> pa.Table:
        """Return a table with exactly this contract's columns, types and order; check its rows.

        Args:
            table: missing nullable columns are added as nulls; its schema metadata is kept.
            where: start of the error message, e.g. the dataset.

        Raises:
            ContractError: the table breaks the contract; names the column and the first bad row.
        """
        extra = sorted(set(table.column_names) - set(self.arrow_schema.names))
        if extra:
            raise ContractError(where, f"columns unknown to {self.id}: {', '.join(extra)}")
        arrays = [self._column(table, field, where) for field in self.arrow_schema]
        metadata = dict(table.schema.metadata or {})
        metadata.pop(b"pandas", None)  # has library versions: equal rows would differ in bytes
        schema = self.arrow_schema.with_metadata(metadata or None)
        result = pa.Table.from_arrays(arrays, schema=schema)
        checks = {column.name: column.checks for column in self.columns}
        problems = find_problems(result, checks, self.primary_key)
        if problems:
            more = f", and {len(problems) - 1} more problems" if len(problems) > 1 else ""
            raise ContractError(where, f"{problems[0]}{more}", f"contract {self.id}")
        return result

    def _column(self, table: pa.Table, field: pa.Field, where: str) -> pa.ChunkedArray | pa.Array:
        if field.name in table.column_names:
            try:
                # safe cast: an int64 that does not fit int32 is an error, not another number
                return table[field.name].cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                what = f"column {field.name}: {error}"
                raise ContractError(where, what, f"contract {self.id}") from error
        if not field.nullable:
            raise ContractError(where, f"column {field.name} is missing", f"contract {self.id}")
        return pa.nulls(table.num_rows, field.type)


def schemas_folder() -> Path:
    """Return the folder of the contract files: `schemas/` of a checkout, else of the wheel."""
    package = Path(__file__).parents[1]
    # a wheel has no schemas/ beside the package; the build copies it to videoar/_schemas
    beside = package.parent / "schemas"
    return beside if beside.is_dir() else package / "_schemas"


def read_contract(path: Path) -> Contract:
    """Read one contract file.

    Raises:
        ContractError: the file is no contract; names the file and the first wrong key.
    """
    if not path.is_file():
        known = ", ".join(contract_ids())
        raise ContractError(path.name, "no such contract", f"known: {known}")
    try:
        return Contract.model_validate(read_mapping(path, "start with `contract: <name>@<major>`"))
    except ConfigError as error:
        raise ContractError(error.where, error.what, error.hint) from None
    except ValidationError as error:
        raise ContractError(str(path), _first(error)) from error


def _first(error: ValidationError) -> str:
    # the first mistake only: contract files are written by developers, not by users
    first: Any = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key + ': ' if key else ''}{first['msg']}"


def contract_ids() -> list[str]:
    """Return the ids of all contracts, sorted."""
    names = sorted(path.name.removesuffix(".yaml") for path in schemas_folder().glob("*.v*.yaml"))
    return [name.replace(".v", "@") for name in names]


# loaded at every read and write; the files do not change while a process runs
@lru_cache(maxsize=64)
def load_contract(contract_id: str) -> Contract:
    """Load a contract by id, e.g. `clips@1`.

    Raises:
        ContractError: there is no such contract, or its file is not valid.
    """
    name, _, major = contract_id.partition("@")
    contract = read_contract(schemas_folder() / f"{name}.v{major}.yaml")
    if contract.id != contract_id:
        raise ContractError(contract_id, f"the file declares {contract.id}", "rename one of them")
    return contract
