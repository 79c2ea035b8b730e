"""Endpoint and credentials of a bucket: one source for all clients, errors that name it."""

import logging
import sys
import time

import botocore.credentials
import pytest

from tests.support.committed_rows import commit_source
from tests.support.s3_proxy import s3_proxy
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY
from videoar.core.errors import ConfigError, StorageError, TransientStorageError
from videoar.storage.s3_store import S3ObjectStore
from videoar.storage.store import open_store


@pytest.fixture
def aws(moto_server, monkeypatch, tmp_path):
    """Return a function that sets AWS variables, and the files of the AWS profiles."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("config", "credentials"):
        variable = {"config": "AWS_CONFIG_FILE", "credentials": "AWS_SHARED_CREDENTIALS_FILE"}[name]
        monkeypatch.setenv(variable, str(tmp_path / name))

    def set_all(config="", credentials="", **variables):
        (tmp_path / "config").write_text(config.replace("ENDPOINT", moto_server.endpoint))
        (tmp_path / "credentials").write_text(credentials)
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(f"AWS_{name}", raising=False)
            else:
                monkeypatch.setenv(f"AWS_{name}", value.replace("ENDPOINT", moto_server.endpoint))

    return set_all


NOWHERE = "http://127.0.0.1:9"
SERVICE = "[profile p]\nservices = s\n[services s]\ns3 =\n  endpoint_url = ENDPOINT\n"
SOURCES = {
    "AWS_ENDPOINT_URL": {"ENDPOINT_URL": "ENDPOINT"},
    "AWS_ENDPOINT_URL_S3": {"ENDPOINT_URL_S3": "ENDPOINT"},
    "the S3 one before the other": {"ENDPOINT_URL_S3": "ENDPOINT", "ENDPOINT_URL": NOWHERE},
    "a profile": {"PROFILE": "p", "config": "[profile p]\nendpoint_url = ENDPOINT\n"},
    "a service of a profile": {"PROFILE": "p", "config": SERVICE},
    "ours before AWS": {"ENDPOINT_URL": NOWHERE, "ENDPOINT_URL_S3": NOWHERE},
}


@pytest.mark.parametrize("source", SOURCES)
def test_endpoint_is_the_same_for_boto3_and_delta(aws, moto_server, source):
    aws(**SOURCES[source])
    endpoint = moto_server.endpoint if source == "ours before AWS" else ""
    store = open_store(moto_server.new_url(), endpoint=endpoint)
    commit_source(store, "a")
    assert [snapshot.commit.provenance.stage for snapshot in store.snapshots()] == ["a"]
    assert store.objects.options()["AWS_ENDPOINT_URL"] == moto_server.endpoint


WRONG = [
    ({"PROFILE": "absent"}, "", "AWS configuration: .*profile.*absent"),
    ({"DEFAULT_REGION": "not a region"}, "", "AWS configuration: .*region"),
    ({}, "127.0.0.1:9000", "127.0.0.1:9000: not an S3 endpoint.* VIDEOAR_S3_ENDPOINT"),
    ({}, "localhost:9000", "localhost:9000: not an S3"),
    ({}, "http://user:planted@host:1", "S3 endpoint: has a user name or password"),
    ({"ENDPOINT_URL": "http://user:planted@host:1"}, "", "S3 endpoint: has a user name"),
    ({}, "ftp://host", "ftp://host: not an S3"),
    ({"ENDPOINT_URL": "host:9000"}, "", "AWS_ENDPOINT_URL: Invalid endpoint: host:9000"),
    ({"PROFILE": "p", "config": "[profile p\n"}, "", "AWS configuration: Unable to parse"),
]


@pytest.mark.parametrize(("variables", "endpoint", "words"), WRONG)
def test_configuration_unusable_is_named(aws, variables, endpoint, words):
    aws(**variables)
    with pytest.raises(ConfigError, match=words) as caught:
        open_store("s3://bucket/x", endpoint=endpoint)
    assert "\n" not in str(caught.value)
    assert "planted" not in str(caught.value)


PROVIDER = """
import json, sys, time
from datetime import datetime, timedelta, UTC
life = {life}
count = open("{count}").read()
open("{count}", "w").write(count + "x")
key = f"KEY{{len(count)}}at{{int(time.time() * 1000)}}"
until = (datetime.now(UTC) + timedelta(seconds=life)).isoformat()
print(json.dumps(dict(Version=1, AccessKeyId=key, SecretAccessKey="planted-secret",
                      SessionToken="planted-token", Expiration=until)))
"""


@pytest.mark.fault(33, "keys of a provider that the server refuses after three seconds")
def test_expired_credentials_are_renewed(aws, moto_server, monkeypatch, tmp_path, caplog):
    # botocore renews keys 15 and 10 minutes before their end, these live three seconds
    refreshable = botocore.credentials.RefreshableCredentials
    monkeypatch.setattr(refreshable, "_advisory_refresh_timeout", 2)
    monkeypatch.setattr(refreshable, "_mandatory_refresh_timeout", 1)
    script, count = tmp_path / "provider.py", tmp_path / "count"
    script.write_text(PROVIDER.format(life=3, count=count))
    count.touch()
    process = f"credential_process = {sys.executable} {script}"
    aws(ACCESS_KEY_ID=None, SECRET_ACCESS_KEY=None, PROFILE="p", config=f"[profile p]\n{process}\n")

    def refuse_old_keys(request):
        key = request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        return "expired" if time.time() - int(key.partition("at")[2]) / 1000 > 3 else "pass"

    with s3_proxy(moto_server.endpoint) as proxy, caplog.at_level(logging.INFO):
        proxy.plan = refuse_old_keys
        store, began, commits = open_store(moto_server.new_url(), endpoint=proxy.endpoint), 0, 0
        began = time.monotonic()
        while time.monotonic() - began < 7:
            commit_source(store, str(commits))
            commits += 1
        assert len(list(store.snapshots())) == commits
    assert 3 <= len(count.read_text()) <= commits + 8
    assert "planted" not in caplog.text


@pytest.mark.fault(33, "keys that are replaced in their file when they have expired")
def test_credentials_replaced_in_their_file_are_read_again(aws, moto_server):
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    aws(
        credentials=profile.format("OLD", "planted-secret"),
        ACCESS_KEY_ID=None,
        SECRET_ACCESS_KEY=None,
    )
    with s3_proxy(moto_server.endpoint) as proxy:
        objects = S3ObjectStore(moto_server.bucket, "renewed", proxy.endpoint, 5.0)
        objects.put("a", b"1")
        proxy.plan = lambda r: "expired" if "OLD/" in r.headers["Authorization"] else "pass"
        with pytest.raises(StorageError, match=r"access denied \(ExpiredToken\)") as caught:
            objects.get("a")
        assert "planted" not in str(caught.value)
        aws(credentials=profile.format(ACCESS_KEY, SECRET_KEY))
        assert objects.size("a") == 1
        assert objects.get("a") == b"1"
        assert objects.options()["AWS_ACCESS_KEY_ID"] == ACCESS_KEY


def test_provider_that_fails_is_named(aws, moto_server, tmp_path):
    script = tmp_path / "provider.py"
    script.write_text("import sys; sys.exit('no\\nticket')")
    process = f"credential_process = {sys.executable} {script}"
    aws(ACCESS_KEY_ID=None, SECRET_ACCESS_KEY=None, PROFILE="p", config=f"[profile p]\n{process}\n")
    with pytest.raises(TransientStorageError, match="custom-process: no ticket"):
        open_store(moto_server.new_url(), endpoint=moto_server.endpoint)
