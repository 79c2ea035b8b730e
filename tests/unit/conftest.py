"""Fixtures of all unit tests."""

import pytest


@pytest.fixture(autouse=True)
def no_registry(request, monkeypatch):
    """Mirror no refs: MLflow takes seconds to create a database. `test_registry` tests it."""
    if request.path.name != "test_registry.py":
        monkeypatch.setattr("videoar.records.mlflow.aliases.mirror_ref", lambda *_: None)
