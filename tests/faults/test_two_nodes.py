"""A Ray of two nodes: what one of them has not, the other one has."""

import pytest
from ray.cluster_utils import Cluster

from tests.support.poison import REGISTRY, document, tries
from videoar.engine.ray_engine import RayEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.runner.execute import Execution
from videoar.storage.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.soak]


@pytest.mark.ray
@pytest.mark.fault(14, "one of two nodes whose disk is full")
def test_shards_of_a_node_whose_disk_is_full_run_on_the_other(tmp_path, monkeypatch):
    """Rows fill the disk of one node only; each shard of it is tried once there."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    store = open_store(tmp_path.as_uri())
    cluster = Cluster(head_node_args={"num_cpus": 0})
    try:
        full, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
        doc = document(
            tmp_path / "v", *[f"{n}-fill" for n in range(32)], only_node=full.node_id,
            resources={"workers": 2}, retries={"infra": 1},
        )  # fmt: skip
        engine = RayEngine(cluster.address)
        spec = parse_pipeline(doc, "t", REGISTRY)
        run = Execution(spec, store, engine, registry=REGISTRY).run()
        engine.close()
    finally:
        cluster.shutdown()
    assert (run.status, run.stage("big").rows.out) == ("SUCCEEDED", 32)
    tried = [tries(store, f"{n}-fill") for n in range(32)]
    assert sum(tried) > 0
    assert max(tried) == 1
