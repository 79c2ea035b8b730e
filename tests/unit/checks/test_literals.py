"""The check of literals: what it finds and what it leaves alone."""

import pytest

from tests.checks.literals import literals


@pytest.mark.parametrize(
    "source",
    [
        'x = "tables/videos"',
        'objects.list("runs/")',
        'key = f"stages/{dataset}/loops/{name}.json"',
        'key = f"{prefix}/shards"',
        'key = f"{folder}/_delta_log/0.json"',
        'name = f"{dataset}.rejects"',
        'PREFIX: str = "withdrawn/"',
        'load_contract("clips@1")',
        'produces = "models@2"',
    ],
)
def test_literal_outside_its_module_is_found(source):
    assert len(list(literals("videoar/x.py", source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Keys such as tables/videos, of clips@1."""',
        'def f():\n    """Return `runs/x`."""\n    return 1',
        'x = "tables"',
        'x = "runs/stages of this run"',
        'x = "someone@1"',
        "x = table_folder(dataset)",
    ],
)
def test_other_text_passes(source):
    assert list(literals("videoar/x.py", source)) == []
