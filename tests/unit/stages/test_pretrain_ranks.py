"""Two ranks of `pretrain`, sharded or not: the same model as one, published once."""

import json

import pytest
import torch

from tests.support.loop_rank import MemoryRank
from tests.support.ranks import run_ranks
from tests.support.token_tables import pretrain_inputs
from videoar.pipeline.context import StageContext
from videoar.stages.pretrain.stage import PretrainConfig, PretrainStage
from videoar.storage.store import open_store

PHASES = [
    {"steps": 3, "batch_size": 2, "accumulate": 2, "p_mask": 0.5},
    {"tokens": 90, "batch_size": 2},
]


def _run(rank, world_size, folder, snapshots, *, shard):
    torch.set_num_threads(1)
    store = open_store(f"file://{folder}/store")
    if world_size > 1:
        meet = f"file://{folder}/meet-{shard}"
        torch.distributed.init_process_group(
            "gloo", init_method=meet, rank=rank, world_size=world_size
        )
    (own := MemoryRank(folder / f"rank-{rank}-{shard}")).index = rank
    own.world_size = world_size
    stage = PretrainStage(PretrainConfig(training={"phases": PHASES, "shard": shard}))
    inputs = {port: store.snapshot(id_) for port, id_ in snapshots.items()}
    output = stage.run(inputs, StageContext(store), own)
    assert (output is None) == (rank > 0)
    return output and output.rows.to_pylist()[0]


def _rank(rank, folder, snapshots):
    for shard in (True, False):
        row = _run(rank, 2, folder, snapshots, shard=shard)
        if row:
            (folder / f"{shard}.json").write_text(json.dumps(row))
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_publish_the_model_of_one(tmp_path):
    inputs = pretrain_inputs(open_store(f"file://{tmp_path}/store"))
    snapshots = {port: snapshot.id for port, snapshot in inputs.items()}
    alone = _run(0, 1, tmp_path, snapshots, shard=False)
    run_ranks(_rank, 2, tmp_path, snapshots)
    for shard in (True, False):
        row = json.loads((tmp_path / f"{shard}.json").read_text())
        for same in ("kind", "config_json", "num_parameters", "step", "tokenizer_digest"):
            assert row[same] == alone[same]
        curves = [json.loads(each["history_json"]) for each in (row, alone)]
        for found, expected in zip(*curves, strict=True):
            assert found == pytest.approx(expected, rel=1e-4)
