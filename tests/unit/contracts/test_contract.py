"""Contract files are validated strictly, and errors name the rows that break a contract."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoar.contracts.contract import contract_ids, load_contract, read_contract
from videoar.core.errors import ContractError

SOURCE = {"uri": ["a", "b"], "name": ["a", "b"], "etag": ["1", "2"], "size_bytes": [1, 2]}


def sources(**columns):
    return pa.table({**SOURCE, **columns})


def test_contracts_of_the_repository_load():
    assert {load_contract(name).id for name in contract_ids()} == set(contract_ids())
    assert "clips@1" in contract_ids()


def test_conform_casts_orders_and_adds_nullable_columns():
    contract = load_contract("sources@1")
    table = contract.conform(pa.table(dict(reversed(SOURCE.items()))), "here")
    assert table.schema.equals(contract.arrow_schema)
    assert table["split"].null_count == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"size_bytes": [1, -5]}, r"column size_bytes: below 0: row 1: -5"),
        ({"size_bytes": [None, 3]}, r"column size_bytes: null not allowed: row 0"),
        ({"size_bytes": ["many", "few"]}, r"column size_bytes: Failed to parse"),
        ({"split": ["train", "test"]}, r"column split: not one of train, val: row 1: 'test'"),
        ({"uri": ["a", "a"]}, r"column uri: not unique: row 1: \('a',\)"),
        ({"colour": ["red", "red"]}, r"columns unknown to sources@1: colour"),
    ],
)
def test_conform_names_column_and_first_bad_row(columns, message):
    with pytest.raises(ContractError, match=message):
        load_contract("sources@1").conform(sources(**columns), "here")


def test_conform_names_a_missing_column_and_counts_bad_rows():
    contract = load_contract("sources@1")
    with pytest.raises(ContractError, match="column etag is missing"):
        contract.conform(sources().drop_columns("etag"), "here")
    with pytest.raises(ContractError, match="row 0 and 1 more"):
        contract.conform(sources(size_bytes=[-1, -2]), "here")


def test_integers_that_no_float_represents_are_checked():
    rows = {"prompt_id": ["a"], "prompt": ["a"], "index": [0]}
    prompts = load_contract("prompts@1")
    seeds = prompts.conform(pa.table({**rows, "seed": [2**63 - 1]}), "here")["seed"]
    assert seeds.to_pylist() == [2**63 - 1]
    with pytest.raises(ContractError, match="below 0"):
        prompts.conform(pa.table({**rows, "seed": [-(2**60) - 1]}), "here")


def test_nan_is_out_of_bounds_and_regex_is_checked():
    clips = load_contract("clips@1")
    from videoar.contracts.checks import find_problems

    checks = {column.name: column.checks for column in clips.columns}
    table = pa.table({
        "luma_mean": pa.array([None, 1.0, float("nan")], pa.float32()),
        "clip_id": ["a" * 32, "b" * 32, "../c"],
    })
    problems = {p.column: p.row for p in find_problems(table, checks, ["clip_id"])}
    assert problems == {"luma_mean": 2, "clip_id": 2}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), max_size=30))
def test_duplicates_are_found_iff_they_exist(rows):
    from videoar.contracts.checks import find_problems

    table = pa.table({
        "n": pa.array([n for n, _ in rows], pa.int64()),
        "s": pa.array([s for _, s in rows], pa.string()),
    })
    seen, first = set(), None
    for index, row in enumerate(rows):
        if row in seen and first is None:
            first = index
        seen.add(row)
    problems = find_problems(table, {}, ["n", "s"])
    assert [p.row for p in problems] == ([] if first is None else [first])
    assert sum(p.count for p in problems) == len(rows) - len(seen)


COLUMN = "{name: a, type: string, nullable: false, description: x}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"contract: bad\nprimary_key: [a]\ncolumns: [{COLUMN}]", "contract"),
        ("contract: x@1\nprimary_key: [a]\ncolumns: []", "columns"),
        (f"contract: x@1\nprimary_key: [b]\ncolumns: [{COLUMN}]", "names no column: b"),
        (f"contract: x@1\nprimary_key: [a]\ncolumns: [{COLUMN}, {COLUMN}]", "declared twice: a"),
        (
            f"contract: x@1\nprimary_key: [a]\ncolumns: [{COLUMN.replace('string', 'strnig')}]",
            r"columns\.0\.type: .*unknown type 'strnig'",
        ),
        (
            f"contract: x@1\nprimary_key: [a]\ncolumns: [{COLUMN[:-1]}, checks: {{regex: '['}}}}]",
            r"columns\.0\.checks\.regex: .*not a regular expression",
        ),
        (f"contract: x@1\nprimary_key: [a]\ncolumns: [{COLUMN}]\ncolor: red", "color"),
        ("a: [", "not YAML"),
    ],
)
def test_contract_file_invalid_is_named(tmp_path, text, message):
    path = tmp_path / "x.v1.yaml"
    path.write_text(f"description: x\nowner: x\n{text}" if text != "a: [" else text)
    with pytest.raises(ContractError, match=message) as error:
        read_contract(path)
    assert "x.v1.yaml" in str(error.value)


def test_contract_unknown_lists_known_ones():
    with pytest.raises(ContractError, match="sources@1"):
        load_contract("source@1")
