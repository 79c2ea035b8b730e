"""Cluster files, checked without a cluster: schemas, EC2's API model and rules of our own."""

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra" / "kuberay" / "base"
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "infra" / "kuberay-crds"))
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)


def documents(folder: Path) -> dict[str, dict]:
    loaded = [
        d for path in sorted(folder.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())
    ]
    return {document["kind"]: document for document in loaded}


@pytest.fixture(scope="module")
def launcher() -> dict:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


@pytest.fixture(scope="module")
def kinds() -> dict[str, dict]:
    return documents(KUBERAY)


def cluster_specs(kinds) -> dict[str, dict]:
    return {
        "RayCluster": kinds["RayCluster"]["spec"],
        "RayJob": kinds["RayJob"]["spec"]["rayClusterSpec"],
    }


def test_launcher_file_passes_rays_own_checks(launcher):
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    validate_config(prepare_config(launcher))


def test_launcher_worker_limits_are_consistent(launcher):
    types = launcher["available_node_types"]
    workers = {name: t for name, t in types.items() if name != launcher["head_node_type"]}
    assert all(t["min_workers"] <= t["max_workers"] for t in workers.values())
    assert sum(t["max_workers"] for t in workers.values()) <= launcher["max_workers"]
    assert types[launcher["head_node_type"]]["resources"]["CPU"] == 0


def test_launcher_nodes_are_valid_ec2_requests(launcher):
    import botocore.session
    from botocore.validate import ParamValidator

    session = botocore.session.get_session()
    ec2 = session.get_service_model("ec2")
    known_types = set(ec2.shape_for("InstanceType").enum)
    for name, node_type in launcher["available_node_types"].items():
        request = {"MinCount": 1, "MaxCount": 1, **node_type["node_config"]}
        report = ParamValidator().validate(request, ec2.operation_model("RunInstances").input_shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert request["InstanceType"] in known_types


def test_manifests_use_the_pinned_ray_and_the_image_tags(kinds):
    version = re.search(r'version = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]
    for spec in cluster_specs(kinds).values():
        assert spec["rayVersion"] == PINS["ray"]
        pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        images = {c["image"] for p in pods for c in p["template"]["spec"]["containers"]}
        assert images == {f"videoar:{version}-cpu", f"videoar:{version}-gpu"}


def test_clusters_schedule_no_work_on_the_head_and_scale_from_zero(kinds):
    for spec in cluster_specs(kinds).values():
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert len(spec["workerGroupSpecs"]) <= 7, "Kueue admits eight pod sets, head included"
        for group in spec["workerGroupSpecs"]:
            assert 0 == group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            scratch = [v["emptyDir"] for v in group["template"]["spec"]["volumes"]]
            assert all("sizeLimit" in volume for volume in scratch)


def test_job_satisfies_the_rules_of_the_kuberay_controller(kinds):
    spec = kinds["RayJob"]["spec"]
    assert "clusterSelector" not in spec
    assert spec["shutdownAfterJobFinishes"], "ttlSecondsAfterFinished needs it"
    assert spec["submitterConfig"]["backoffLimit"] == 0, "a second submission is refused by Ray"
    assert spec["activeDeadlineSeconds"] > 0
    program, script, pipeline = spec["entrypoint"].split()[:3]
    assert program == "python"
    assert (ROOT / script).is_file()
    assert pipeline.startswith("pipelines/")


def test_kustomization_lists_every_manifest(kinds):
    names = {path.name for path in KUBERAY.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kinds["Kustomization"]["resources"]) == names


def test_dockerfile_has_both_targets_and_copies_existing_files():
    text = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    assert set(re.findall(r"^FROM base AS (\w+)", text, re.M)) == {"cpu", "gpu"}
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def strict(schema: dict) -> dict:
    """Refuse unknown keys wherever the schema does not ask to keep them.

    An API server would drop a misspelt key silently; this finds it.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = strict(schema[key])
    if "properties" in schema:
        made["properties"] = {name: strict(sub) for name, sub in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


def crd_validator(name: str) -> jsonschema.Draft7Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((CRDS / name).read_text(), loader)
    served = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = strict(served["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "crd"), [("RayCluster", "rayclusters.yaml"), ("RayJob", "rayjobs.yaml")]
)
def test_manifests_match_the_kuberay_schemas_without_unknown_keys(kinds, kind, crd):
    if not CRDS.is_dir():
        pytest.skip("no KubeRay CRDs: set KUBERAY_CRDS to a folder of them")
    validator = crd_validator(crd)
    assert list(validator.iter_errors(kinds[kind])) == []
    misspelt = json.loads(json.dumps(kinds[kind]).replace("minReplicas", "minReplica"))
    assert "minReplica" in str(next(validator.iter_errors(misspelt)))
