"""Digests, keys, run ids and seeds."""

import time

import pytest

from videoar.core.ids import (
    canonical_json,
    digest_json,
    is_safe_key,
    new_run_id,
    run_time_s,
    seed_from,
)


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})
    assert digest_json([1, 2]) != digest_json([2, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_of_a_non_finite_number_is_an_error(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": value})


@pytest.mark.parametrize("name", ["clips", "tables/clips", "clips:0123", "a..b", "a" * 200])
def test_safe_key_is_accepted(name):
    assert is_safe_key(name)


@pytest.mark.parametrize("name", ["", "/etc", "a//b", "..", "../a", "a/./b", "..:0123", "a\0",
    "a" * 201, "é" * 101, "\ud800" * 70, "a/" * 450 + "a"])  # fmt: skip
def test_key_that_leaves_its_folder_is_not_safe(name):
    assert not is_safe_key(name)


def test_run_ids_have_18_characters_and_sort_by_time():
    ids = []
    for _ in range(50):
        ids.append(new_run_id(after=ids))
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    assert {len(id_) for id_ in ids} == {18}


def test_run_id_after_ids_of_another_form_ignores_them():
    assert new_run_id(after=["zzzzzzzzzzzzzzzzzz", "my run"]) < "7" * 18


def test_seed_from_is_pinned():
    """Samples, splits and shuffles derive from these numbers: a change changes every result."""
    assert seed_from("a", 1) == 697930202312019326
    assert seed_from("a", 1) != seed_from("a1") != seed_from("a", "1")
    assert 0 <= seed_from() < 2**63


def test_run_time_is_that_of_the_id():
    before = time.time()
    assert before - 0.001 <= run_time_s(new_run_id()) <= time.time()
    assert run_time_s("run1") is None
