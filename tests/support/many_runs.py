"""A store with many runs and data files, to measure what reading verbs cost as it grows.

`python -m tests.support.many_runs FOLDER RUNS FILES [LATENCY_S]` makes it unless it is there, and
prints requests and seconds of verbs, as it does for the URL of a copy (`videoar store copy`), and
of the command `videoar promote` in a process of its own. A page of a listing counts as one request.
Each run has its own listing, FILES files of clips of 8 sources each, a model and a passed decision
on it. Logs and index records are those that `Dataset.commit` writes, without its fsyncs and Delta
actions.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pyarrow as pa

from tests.support.clip_rows import clip_row
from tests.support.remote_objects import Counting
from videoar import api
from videoar.admin import promotion, registry
from videoar.cli import app
from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, MODELS, RELEASES, SOURCES
from videoar.core.ids import canonical_json, sha256_hex
from videoar.core.processes import used_cpu_s
from videoar.core.settings import settings
from videoar.core.types import Commit, FileRef, Provenance
from videoar.records.run_folds import fold_runs
from videoar.storage import layout
from videoar.storage.delta_log import iter_commits
from videoar.storage.ledger import seal
from videoar.storage.snapshot import snapshot_digest
from videoar.storage.store import Store, open_store
from videoar.storage.takedown import marks_of
from videoar.storage.writer import ROW_GROUP_BYTES, find_footer, write_parquet

SOURCES_A_FILE = 8
_LINKS = 10_000  # a file system allows 65,000 to one file
WANTED = sha256_hex(b"wanted")
"""The source of one row in one file of clips, and of one in a listing."""


class ManyRuns:
    """Writes the store."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.versions: dict[str, int] = {}
        self.count = 0
        self.copies = defaultdict(list)

    def template(self, contract: str, rows: list[dict]) -> tuple[bytes, FileRef]:
        """Return rows as a file, and what a commit has of it."""
        schema = load_contract(contract)
        table = schema.conform(pa.Table.from_pylist(rows, schema.arrow_schema), contract)
        data = write_parquet(table, schema, ROW_GROUP_BYTES)
        size, footer = len(data), find_footer(data)
        file = FileRef(key="", sha256="", size_bytes=size, rows=len(rows), footer=footer)
        return data, file.model_copy(update={"marks": marks_of(table)})

    def file(self, dataset: str, template: tuple[bytes, FileRef]) -> FileRef:
        """Write a file under another name, as if its content were another."""
        self.count += 1
        sha256 = sha256_hex(b"%d" % self.count)
        key = layout.data_key(dataset, sha256)
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = sha256_hex(template[0])
        copies = self.copies[digest]
        if len(copies) % _LINKS == 0:
            path.write_bytes(template[0])
        else:  # gigabytes otherwise
            path.hardlink_to(copies[-1])
        copies.append(path)
        return template[1].model_copy(update={"key": key, "sha256": sha256})

    def record(self, key: str, record: dict) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(canonical_json(seal(key, record)))

    def commit(self, dataset: str, contract: str, files: list[FileRef], **provenance) -> str:
        version = self.versions[dataset] = self.versions.get(dataset, 0) + 1
        if version == 1:
            first = [{"commitInfo": {}}, {"metaData": {"description": contract}}]
            self.log(dataset, 0, first)
        digest = snapshot_digest(files, contract)
        commit = Commit(
            snapshot=f"{dataset}:{digest[:16]}", digest=digest, dataset=dataset, contract=contract,
            version=version, files=tuple(files),
            provenance=Provenance(
                pipeline="p", stage=dataset, fingerprint=sha256_hex(digest.encode()),
                code_version="0", **provenance,
            ),
        )  # fmt: skip
        key = layout.log_version_key(dataset, version)
        text = canonical_json(seal(key, commit.model_dump(mode="json")))
        self.log(dataset, version, [{"commitInfo": {"videoar": text}}])
        self.record(layout.commit_index_key(dataset, f"digest-{digest[:16]}"), {"version": version})
        return commit.snapshot

    def log(self, dataset: str, version: int, actions: list[dict]) -> None:
        path = self.folder / layout.log_version_key(dataset, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, actions)))


def stored_clip(name: str) -> dict:
    """Return a row of a clip that is an object of the store."""
    row = clip_row(name)
    return row | {"video_key": layout.object_key(row["video_sha256"], ".mp4")}


def make(folder: Path, runs: int, files_a_run: int) -> None:
    """Write the store."""
    store = open_store(folder.absolute().as_uri())
    store.ledger.prepare_write()
    made = ManyRuns(store, folder)
    clips = made.template(CLIPS, [stored_clip(str(n)) for n in range(SOURCES_A_FILE)])
    wanted = made.template(CLIPS, [stored_clip("wanted")])
    listing, with_wanted = (
        made.template(SOURCES, [{"uri": uri, "name": "n", "etag": "e", "size_bytes": 1}])
        for uri in ("u", clip_row("wanted")["source_uri"])
    )
    model = made.template(MODELS, [{
        "name": "m", "kind": "classifier", "digest": "0" * 64, "config_json": "{}", "files": [],
        "num_parameters": 1, "step": 1, "metrics": {}, "history_json": "[]",
    }])  # fmt: skip
    for run in range(runs):
        run_id = f"{run:018d}"
        files = [made.file("videos", with_wanted if run == 7 else listing)]
        videos = made.commit("videos", SOURCES, files, run_id=run_id)
        templates = [wanted if run == 7 and n == 3 else clips for n in range(files_a_run)]
        files = [made.file("clips", template) for template in templates]
        clip = made.commit("clips", CLIPS, files, run_id=run_id, parents={"sources": videos})
        files = [made.file("model", model)]
        trained = made.commit("model", MODELS, files, run_id=run_id, parents={"clips": clip})
        decision = made.template(RELEASES, [{
            "rule": "r", "metric": "m", "passed": True, "reason": "r", "candidate": trained,
            "ref": "champion", "champion": None, "champion_seq": -1,
        }])  # fmt: skip
        files = [made.file("gate", decision)]
        gate = made.commit("gate", RELEASES, files, run_id=run_id, parents={"model": trained})
        decided = {"decision": gate, "by_run": run_id}
        made.record(layout.log_entry_key(layout.DECISIONS_LOG, run), decided)
        run_record = {"run_id": run_id, "pipeline": "p", "started_at": 0.0, "source": "p.yaml"}
        run_record |= {"code_version": "0", "pipeline_digest": "0", "stages": []}
        run_record |= {"document": {"stages": {}}, "from": None, "until": None}
        made.record(layout.run_key(run_id), run_record)
        ended = {"kind": "finish", "time": 0.0, "status": "SUCCEEDED", "error": None}
        made.record(layout.log_entry_key(layout.run_events(run_id), 0), ended)
        made.record(layout.folded_events_key(run_id), {"events": [ended]})
    store.fold()
    fold_runs(store)


def measure(store: Store, latency_s: float) -> None:
    """Print requests, seconds and CPU seconds of verbs; that of `promote` moves a ref again."""
    newest = {d: list(iter_commits(store.objects, d))[-1].snapshot for d in ("clips", "model")}
    for key in list(store.ledger.list(layout.ref_log("champion"))):
        store.objects.delete(key)
    promotion.mirror_move = lambda *_: None  # it has a line of its own
    verbs = {
        "promote": lambda s: api.promote(s, newest["model"]),
        "its mirror in MLflow": lambda s: registry.mirror_move(s, "champion"),
        "lineage": lambda s: api.lineage(s, newest["model"]),
        "lineage --down": lambda s: api.lineage(s, newest["clips"], down=True),
        "forget --dry-run": lambda s: api.forget(s, WANTED, dry_run=True),
        "ls": lambda s: api.ls(s, 21),
        "all runs": api.ls,
        "status": api.status,
    }
    for name, verb in verbs.items():
        counting = Counting(store.objects, latency_s)
        began, cpu_s = time.monotonic(), used_cpu_s()
        verb(Store(counting))
        seconds, cpu_s = time.monotonic() - began, used_cpu_s() - cpu_s
        used = f"{counting.requests:,} requests, {seconds:.1f} s, {cpu_s:.1f} CPU-s"
        print(f"{name}: {used}", flush=True)


def measure_command(url: str, latency_s: float) -> None:
    """Print the seconds of `videoar promote`, from the start of a process to its end."""
    store = open_store(url, endpoint=settings().s3_endpoint)
    model = list(iter_commits(store.objects, "model"))[-1].snapshot
    for key in list(store.ledger.list(layout.ref_log("champion"))):
        store.objects.delete(key)
    began = time.monotonic()
    script = f"from tests.support.many_runs import run_slowly; run_slowly({latency_s})"
    verb = ["--store", url, "promote", model]
    subprocess.run([sys.executable, "-c", script, *verb], check=True)
    print(f"the command promote: {time.monotonic() - began:.2f} s")


def run_slowly(latency_s: float) -> None:
    """Run the command line of this process on a store whose requests take time."""
    opened = api.open_store
    api.open_store = lambda url="": Store(Counting(opened(url).objects, latency_s))
    app.main()


if __name__ == "__main__":
    place, (runs, files_a_run) = sys.argv[1], map(int, sys.argv[2:4])
    is_folder = "://" not in place
    if is_folder and not Path(place).exists():
        make(Path(place), runs, files_a_run)
    url = Path(place).absolute().as_uri() if is_folder else place
    latency_s = float([*sys.argv, "0"][4])
    measure(open_store(url, endpoint=settings().s3_endpoint), latency_s)
    for _ in range(3):
        measure_command(url, latency_s)
