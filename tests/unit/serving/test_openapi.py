"""The served schema, checked by tools that others wrote: a validator and schemathesis."""

import hashlib
import subprocess
import sys

import httpx2
import pytest
from openapi_spec_validator import validate

from tests.support.video_service import UNLIMITED
from videoar.serving.server import ServerSettings

KEY = "secret"
# What no schema can say: which models, sizes and durations there are.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 409]
"""


@pytest.fixture(scope="module")
def with_keys(serve_copy):
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    settings = ServerSettings(keys={digest: "test"}, limits=UNLIMITED)
    with serve_copy(settings, max_seconds=2.0) as server:
        yield server


def test_schema_is_valid_openapi_with_errors_of_one_form(http):
    schema = http.get("/openapi.json").json()
    validate(schema)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    content = answer["content"]["application/json"]
                    assert content == {"schema": {"$ref": "#/components/schemas/Error"}}


def test_schema_names_the_key_only_if_the_server_has_some(http, with_keys):
    without = http.get("/openapi.json").json()
    with_key = httpx2.get(f"{with_keys.url}/openapi.json").json()
    assert "security" not in without["paths"]["/v1/videos"]["post"]
    assert "401" not in without["paths"]["/v1/videos"]["post"]["responses"]
    assert with_key["paths"]["/v1/videos"]["post"]["security"] == [{"HTTPBearer": []}]


@pytest.mark.slow
def test_schemathesis_all_checks_find_nothing(with_keys, tmp_path):
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run",
        f"{with_keys.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}",
        "--max-examples", "3", "--seed", "1", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout
