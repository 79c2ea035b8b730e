"""Settings: what is read from the environment, and once."""

import os
from pathlib import Path

import pytest

from videoar.core.errors import ConfigError
from videoar.core.settings import child_environment, settings, share_cores


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Forget what other tests read, and what these read."""
    for name in ("STORE", "TARGET", "LOG", "S3_ENDPOINT"):
        monkeypatch.delenv(f"VIDEOAR_{name}", raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_store_url_defaults_to_a_folder_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings().store_url == (tmp_path / ".videoar").as_uri()
    assert Path.cwd() == tmp_path


def test_variables_override_defaults_and_are_read_once(monkeypatch):
    monkeypatch.setenv("VIDEOAR_TARGET", "inline")
    assert settings().target == "inline"
    monkeypatch.setenv("VIDEOAR_TARGET", "host:6379")
    assert settings().target == "inline"


def test_unknown_log_form_is_rejected_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("VIDEOAR_LOG", "xml")
    with pytest.raises(ConfigError, match=r"VIDEOAR_LOG: cannot be xml \(use text or json\)"):
        settings()


def test_child_environment_has_listed_variables_and_additions(monkeypatch):
    monkeypatch.setenv("SOME_VARIABLE", "1")
    monkeypatch.setenv("TZ", "UTC")
    environment = child_environment(OTHER="2")
    assert environment.items() >= {"TZ": "UTC", "OTHER": "2"}.items()
    assert "SOME_VARIABLE" not in environment


def test_threads_of_openmp_sleep_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
