"""Races writers for one new key, many times, and prints how many rounds had which end.

`python -m tests.support.store_races STORE ROUNDS [WRITERS]`; STORE: folder, moto, ceph, seaweedfs.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.s3_server import Ceph, Moto, Seaweed, serving
from videoar.storage import open_store
from videoar.storage.conformance import race

SERVERS: dict[str, type[Ceph | Moto | Seaweed]] = {
    "moto": Moto, "ceph": Ceph, "seaweedfs": Seaweed,
}  # fmt: skip


def put(client: Any, bucket: str, key: str, body: bytes) -> Callable[[], object]:
    """Return the request that writes at once."""
    return lambda: client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*")


def multipart(client: Any, bucket: str, key: str, body: bytes) -> Callable[[], object]:
    """Upload one part; return the request that completes the object."""
    of = {"Bucket": bucket, "Key": key}
    of["UploadId"] = client.create_multipart_upload(**of)["UploadId"]
    parts = [{"PartNumber": 1, "ETag": client.upload_part(**of, PartNumber=1, Body=body)["ETag"]}]
    return lambda: client.complete_multipart_upload(
        **of, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
    )


def answer(request: Callable[[], object], start: threading.Barrier) -> str:
    """Send one request, once; return its status."""
    start.wait()
    try:
        request()
    except ClientError as error:
        return str(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return "200"


def count(
    kind: Callable[..., Callable[[], object]], endpoint: str, bucket: str, rounds: int, writers: int
) -> str:
    """Race; return the numbers of winners, of rounds with a loser's content, and the answers."""
    config = Config(
        retries={"total_max_attempts": 1}, max_pool_connections=writers,
        request_checksum_calculation="when_required",
    )  # fmt: skip
    client = boto3.client("s3", endpoint_url=endpoint, config=config)
    winners, answers, wrong, start = Counter[int](), Counter[str](), 0, threading.Barrier(writers)
    seconds = []
    with ThreadPoolExecutor(writers) as pool:
        for number in range(rounds):
            key = f"{kind.__name__}-{number}"
            bodies = [f"writer {i}".encode() for i in range(writers)]
            ready = list(pool.map(lambda b, key=key: kind(client, bucket, key, b), bodies))
            began = time.monotonic()
            got = list(pool.map(lambda request: answer(request, start), ready))
            seconds.append(time.monotonic() - began)
            if "200" in got:
                kept = client.get_object(Bucket=bucket, Key=key)["Body"].read()
                wrong += got[bodies.index(kept)] != "200"
            winners[got.count("200")] += 1
            answers.update(got)
    median_ms = 1000 * sorted(seconds)[rounds // 2]
    return (
        f"{kind.__name__}: rounds by number of winners {dict(winners)}, a loser's content {wrong}, "
        f"answers {dict(answers)}, median round {median_ms:.0f} ms, longest {max(seconds):.2f} s"
    )


def main(name: str, rounds: int, writers: int = 8) -> None:
    """Race in a new store, and print."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "folder":
            winners = Counter(race(open_store(Path(folder).as_uri()).objects, rounds, writers))
            print(f"link: rounds by number of winners {dict(winners)}")
            return
        with serving(SERVERS[name](Path(folder))) as server:
            for kind in (put, multipart):
                print(count(kind, server.endpoint, server.bucket, rounds, writers), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
