"""kill -9 of the driver in the middle of ingest, tokenize, pretrain and features, then resume.

One run is killed in each of the first three in turn and still ends where an undisturbed one does.
On Ray, which takes long to start, it is killed in tokenize alone, and everywhere in `make soak`.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.support.feature_runs import prepare
from tests.support.small_pipeline import (
    ROOT,
    command,
    environment,
    sets,
    up_to_the_model,
    videoar,
)
from videoar.storage.store import open_store
from videoar.testing.processes import processes_with

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("calm")
    return videoar("run", *up_to_the_model(folder), store=(folder / "store").as_uri())


def wait_for_record(driver: subprocess.Popen, store: Path, pattern: str) -> None:
    while not list(store.glob(pattern)):
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.02)


def workers_with(mark: str) -> list[str]:
    """Return those of them that can still do work.

    Two agents of Ray's, which serve its raylet, notice only after a minute that it is gone.
    """
    names = processes_with(mark).values()
    return [name for name in names if not name.startswith("ray::") or not name.endswith("Agent")]


def killed_driver(verb: list[str], store: Path, target: str, trace: str) -> dict:
    """Kill the driver of a command at the first record of a pattern; return the run's status."""
    mark = f"PYTHON_KILLED_RUN={store.parent.name}-{os.getpid()}"  # a name that decoders get too
    driver = subprocess.Popen(
        command(*verb, store=store.as_uri(), target=target),
        env=environment(**dict([mark.split("=")])), cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_record(driver, store, trace)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    end = time.monotonic() + 30
    while left := workers_with(mark):
        assert time.monotonic() < end, left
        time.sleep(0.2)
    killed = videoar("status", store=store.as_uri())
    assert killed["status"] == "INTERRUPTED"
    return killed


IN_INGEST, IN_TOKENIZE = "stages/clips/shards/**/*.json", "stages/tokens/shards/**/*.json"
IN_PRETRAIN = "checkpoints/model/*/?????????.json"
EVERYWHERE = [IN_INGEST, IN_TOKENIZE, IN_PRETRAIN]


@pytest.mark.fault(5, "SIGKILL of the command in ingest, tokenize and pretrain")
@pytest.mark.parametrize(
    ("target", "traces"),
    [
        ("inline", EVERYWHERE),
        pytest.param("local", [IN_TOKENIZE], marks=pytest.mark.ray),
        pytest.param("local", EVERYWHERE, marks=[pytest.mark.ray, pytest.mark.soak]),
    ],
)
def test_run_killed_in_several_stages_resumes_to_the_same_snapshots(
    undisturbed: dict, tmp_path: Path, target: str, traces: list[str]
):
    store = (tmp_path / "store").as_uri()
    until = "model" if traces[-1] == IN_PRETRAIN else "tokens"
    verb, run_id, cut = ["run", *up_to_the_model(tmp_path), "--until", until], "", []
    for trace in traces:
        killed = killed_driver(verb, tmp_path / "store", target, trace)
        assert killed["run_id"] == (run_id or killed["run_id"])
        for stage in killed["stages"]:  # finished after the kill before this one
            if stage["name"] in cut:
                assert stage["shards"]["cached"] >= 1, stage
        cut = [trace.split("/")[1]]
        run_id = killed["run_id"]
        verb = ["resume", run_id]
    resumed = videoar(*verb, store=store, target=target)
    assert (resumed["run_id"], resumed["status"]) == (run_id, "SUCCEEDED")
    made = resumed["outputs"]
    assert until in made
    assert made == {name: undisturbed["outputs"][name] for name in made}
    tokens = next(stage for stage in resumed["stages"] if stage["name"] == "tokens")
    if until == "tokens":
        assert tokens["shards"]["cached"] >= 1, tokens
        return
    assert tokens["status"] == "CACHED"
    keys = [key.rpartition("/")[2] for key in open_store(store).ledger.list("checkpoints/model/")]
    kept = ["000000004", "000000004.json", "000000006", "000000006.json"]
    assert sorted({key.split("-")[0] for key in keys}) == kept
    assert len(keys) == 6  # a record and two files each


@pytest.mark.fault(5, "SIGKILL of the command on Ray in features")
@pytest.mark.ray
def test_run_killed_in_features_resumes_to_the_rows_of_an_undisturbed_one(tmp_path: Path):
    stores = {name: tmp_path / name for name in ("calm", "killed")}
    document, _ = (prepare(open_store(path.as_uri()), 8, 4) for path in stores.values())
    document["stages"]["features"]["resources"] = {"workers": 2}
    verb = ["run", str(tmp_path / "features.yaml")]
    Path(verb[1]).write_text(yaml.safe_dump(document))
    calm = videoar(*verb, store=stores["calm"].as_uri())
    killed = killed_driver(verb, stores["killed"], "local", "stages/features/shards/**/*.json")
    verb = ["resume", killed["run_id"]]
    resumed = videoar(*verb, store=stores["killed"].as_uri(), target="local")
    (stage,) = resumed["stages"]
    assert 1 <= stage["shards"]["cached"] < 8
    rows = [
        open_store(stores[name].as_uri()).snapshot(run["outputs"]["features"]).table(verify=True)
        for name, run in (("calm", calm), ("killed", resumed))
    ]
    assert rows[0].equals(rows[1])
    assert rows[0].num_rows == 32 * 5


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.parametrize("shard", ["false", "true"])
def test_run_with_a_killed_rank_gives_the_same_snapshots(tmp_path: Path, shard: str):
    changes = (
        "stages.tokenizer.training.steps=100",
        "stages.tokenizer.checkpoint_every=20",
        "stages.tokenizer.resources={workers: 2, cpus: 0.5}",
        "stages.model.training.phases=[{steps: 100, batch_size: 4}]",
        f"stages.model.training.shard={shard}",
        "stages.model.checkpoint_every=20",
        "stages.model.resources={workers: 2, cpus: 0.5}",
    )
    verb = ["run", *up_to_the_model(tmp_path), *sets(*changes, base=())]
    calm = videoar(*verb, store=(tmp_path / "calm").as_uri(), target="local")
    mark = f"KILLED_RANK={tmp_path.name}-{os.getpid()}"
    driver = subprocess.Popen(
        command(*verb, store=(tmp_path / "store").as_uri(), target="local"),
        env=environment(**dict([mark.split("=")])), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for stage in ("tokenizer", "model"):
        wait_for_record(driver, tmp_path / "store", f"checkpoints/{stage}/*/?????????.json")
        ranks = [p for p, name in processes_with(mark).items() if name == "ray::RayTrainWorker"]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
    out, err = driver.communicate()
    assert err.count("lost ranks") == 2, err
    assert json.loads(out)["outputs"] == calm["outputs"]


@pytest.mark.ray
@pytest.mark.soak
def test_range_of_workers_trains_on_as_many_ranks_as_there_is_room_for(tmp_path: Path):
    changes = (
        "stages.model.training.phases=[{steps: 100, batch_size: 4}]",
        "stages.model.checkpoint_every=20",
    )
    outputs = []
    for name, workers in (("two", "2"), ("range", "[1, 8]")):
        mark = f"RANGE_OF_WORKERS={tmp_path.name}-{name}-{os.getpid()}"
        own = (*changes, f"stages.model.resources={{workers: {workers}, cpus: 2}}")
        verb = ["run", *up_to_the_model(tmp_path), *sets(*own, base=())]
        driver = subprocess.Popen(
            command(*verb, store=(tmp_path / name).as_uri(), target="local"),
            env=environment(**dict([mark.split("=")])), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_record(driver, tmp_path / name, IN_PRETRAIN)
        processes = list(processes_with(mark).values())
        assert processes.count("ray::RayTrainWorker") == 2, (
            "the local Ray has at least 4 logical CPUs"
        )
        out, _ = driver.communicate()
        outputs.append(json.loads(out)["outputs"])
    assert outputs[0] == outputs[1]
