"""A stage whose dataset has another contract is rejected before any work."""

from pathlib import Path

import pytest

from tests.support.toys import REGISTRY
from videoar.core.errors import ConfigError
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.records.run_record import run_ids
from videoar.runner.execute import Execution
from videoar.runner.plan import plan
from videoar.storage.store import open_store


def pipeline(folder: Path, name: str, inputs: str = "videos", **stages: dict):
    document = {"pipeline": name, "inputs": {inputs: str(folder)}, "stages": stages}
    return parse_pipeline(document, f"{name}.yaml", REGISTRY)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_bytes(b"x" * 10)
    return tmp_path / "videos"


def test_plan_and_run_name_both_contracts_and_the_fix(tmp_path, folder):
    store = open_store((tmp_path / "store").as_uri())
    first = pipeline(folder, "one", out={"stage": "upper", "from": {"sources": "videos"}})
    Execution(first, store, InlineEngine(), registry=REGISTRY).run()
    other = pipeline(
        folder, "two",
        big={"stage": "upper", "from": {"sources": "videos"}},
        out={"stage": "count", "from": {"sources": "big"}},
    )  # fmt: skip
    what = r"^out: this dataset has contract sources@1, not models@1 \(give the stage or input anot"
    with pytest.raises(ConfigError, match=what):
        plan(other, store, REGISTRY)
    with pytest.raises(ConfigError, match=what):
        Execution(other, store, InlineEngine(), registry=REGISTRY).run()
    assert len(run_ids(store)) == 1
    assert list(store.objects.list("tables/big")) == []


def test_input_with_the_name_of_a_dataset_of_another_contract_is_rejected(tmp_path, folder):
    store = open_store((tmp_path / "store").as_uri())
    first = pipeline(
        folder, "one",
        big={"stage": "upper", "from": {"sources": "videos"}},
        model={"stage": "count", "from": {"sources": "big"}},
    )  # fmt: skip
    Execution(first, store, InlineEngine(), registry=REGISTRY).run()
    other = pipeline(folder, "two", "model", big={"stage": "upper", "from": {"sources": "model"}})
    with pytest.raises(ConfigError, match=r"^model: this dataset has contract models@1, not sourc"):
        plan(other, store, REGISTRY)
