"""Children that work on media see neither credentials nor addresses, except those that fetch."""

import os
from pathlib import Path

import pytest

from tests.support.small_videos import draw
from videoar.core.settings import settings
from videoar.media.process import Limits
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan
from videoar.storage.s3_store import S3ObjectStore

SECRETS = {
    "AWS_SESSION_TOKEN": "a-secret",
    "RAY_AUTH_TOKEN": "another-secret",
    "VIDEOAR_MLFLOW_URI": "https://user:a-third-secret@host",
    "SOME_API_KEY": "a-fourth-secret",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for name, value in {**SECRETS, "AWS_SECRET_ACCESS_KEY": "testing-secret"}.items():
        monkeypatch.setenv(name, value)


def environments(name: bytes) -> dict[int, dict[str, str]]:
    """Return the environments of this process's children whose command line holds a name."""
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            process = Path("/proc", pid)
            if name in (process / "cmdline").read_bytes():
                pairs = (process / "environ").read_bytes().decode().split("\0")
                found[int(pid)] = dict(pair.split("=", 1) for pair in pairs if pair)
    return found


def assert_no_secrets(environment: dict[str, str]) -> None:
    assert environment["PATH"] == os.environ["PATH"]
    assert not [name for name in environment if name.startswith(("AWS_", "RAY_"))]
    assert not [value for value in environment.values() if "secret" in value]


def test_decoders_and_fetchers_of_files_have_no_secrets(tmp_path):
    draw(tmp_path / "a.mp4", 0)
    (tmp_path / "into").mkdir()
    with SandboxedDecoder(ScanPlan(), Limits()) as scanner:
        path, _ = scanner.fetch((tmp_path / "a.mp4").as_uri(), tmp_path / "into")
        assert list(scanner.scan(path))
        children = environments(b"-m\0videoar.media.sandbox\0")
    assert len(children) == 2
    for environment in children.values():
        assert_no_secrets(environment)


@pytest.mark.slow
def test_what_fetches_from_s3_has_the_credentials_and_what_decodes_it_has_not(
    tmp_path, moto_server, monkeypatch
):
    draw(tmp_path / "a.mp4", 0)
    (tmp_path / "into").mkdir()
    S3ObjectStore(moto_server.bucket, "", moto_server.endpoint).put(
        "a.mp4", (tmp_path / "a.mp4").read_bytes()
    )
    monkeypatch.setenv("VIDEOAR_S3_ENDPOINT", moto_server.endpoint)
    settings.cache_clear()
    with SandboxedDecoder(ScanPlan(), Limits()) as scanner:
        path, _ = scanner.fetch(f"s3://{moto_server.bucket}/a.mp4", tmp_path / "into")
        fetchers = environments(b"-m\0videoar.media.sandbox\0")
        assert list(scanner.scan(path))
        children = environments(b"-m\0videoar.media.sandbox\0")
    settings.cache_clear()
    [(fetcher, environment)] = fetchers.items()
    assert environment["AWS_SECRET_ACCESS_KEY"] == "testing-secret"
    assert environment["VIDEOAR_S3_ENDPOINT"] == moto_server.endpoint
    assert not {"RAY_AUTH_TOKEN", "VIDEOAR_MLFLOW_URI", "SOME_API_KEY"} & environment.keys()
    [decoder] = children.keys() - {fetcher}
    assert_no_secrets(children[decoder])
