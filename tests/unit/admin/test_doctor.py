"""`doctor` says of each metric whether it can run here, or what is missing."""

import os
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest

from tests.support.vbench_runs import interpreter, weights
from videoar.admin import doctor
from videoar.bench.stores import commit
from videoar.contracts.names import MODELS
from videoar.core.settings import settings
from videoar.evaluation import vbench_weights
from videoar.evaluation.metric_names import METRICS
from videoar.evaluation.vbench_constants import DIMENSIONS
from videoar.evaluation.vbench_weights import verified
from videoar.model.classifier import ClassifierConfig, ClipClassifier
from videoar.training.model_store import publish_model


@pytest.fixture
def set_variables(monkeypatch):
    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"VIDEOAR_{name.upper()}", str(value))
        settings.cache_clear()

    yield set_all
    settings.cache_clear()


def of_metrics(store):
    return [check for check in doctor.diagnose(store) if check.name.startswith("metrics ")]


def check_of(store, metric):
    (found,) = (check for check in of_metrics(store) if metric in check.name.split(" ", 1)[1])
    return found.ok, found.detail


def test_doctor_names_every_metric_and_fails_for_none(store):
    checks = of_metrics(store)
    patterns = [p for check in checks for p in check.name.removeprefix("metrics ").split(", ")]
    assert not [name for name in METRICS if not any(fnmatch(name, p) for p in patterns)]
    assert not any(check.is_required for check in checks)
    assert check_of(store, "rendered/*") == (True, "can run")
    assert check_of(store, "frechet_lite0") == (True, "can run")


def test_doctor_names_what_fvd_needs(store, set_variables, tmp_path):
    set_variables(i3d_weights="")
    assert check_of(store, "fvd") == (False, "fvd: no I3D weights (set VIDEOAR_I3D_WEIGHTS)")
    (tmp_path / "i3d").write_bytes(b"other")
    set_variables(i3d_weights=tmp_path / "i3d")
    ok, detail = check_of(store, "fvd")
    assert not ok
    assert f"{tmp_path}/i3d: 5 bytes" in detail


def test_doctor_names_what_each_metric_of_vbench_needs(store, set_variables, tmp_path, monkeypatch):
    set_variables(vbench_python="", vbench_cache="")
    assert check_of(store, "vbench/*") == (
        False,
        "VIDEOAR_VBENCH_PYTHON: is not set (see videoar vbench setup -h)",
    )
    assert check_of(store, "vbench/temporal_flickering") == (True, "can run")
    set_variables(vbench_python=interpreter(tmp_path))
    assert check_of(store, "vbench/temporal_flickering") == (True, "can run")
    assert "VIDEOAR_VBENCH_CACHE: is not set" in check_of(store, "vbench/scene")[1]

    folder = weights(tmp_path, monkeypatch)
    set_variables(vbench_cache=folder)
    names = {f"vbench/{name}" for name in (*DIMENSIONS, "quality", "semantic", "total")}
    assert {c.name.removeprefix("metrics ") for c in of_metrics(store) if c.ok} >= names
    wrong = folder / "clip_model/ViT-L-14.pt"
    before = wrong.stat()
    wrong.write_bytes(wrong.read_bytes()[::-1])  # right size and date, wrong bytes
    os.utime(wrong, ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "ViCLIP/ViClip-InternVid-10M-FLT.pth").unlink()
    failed = [c for c in of_metrics(store) if not c.ok and "vbench" in c.name]
    missing = {check.name.removeprefix("metrics "): check.detail for check in failed}
    for name in ("aesthetic_quality", "quality", "total"):
        assert "ViT-L-14.pt: has SHA-256" in missing.pop(f"vbench/{name}")
    for name in ("temporal_style", "overall_consistency", "semantic"):
        assert "FLT.pth: cannot be read: No such file" in missing.pop(f"vbench/{name}")
    assert not missing


@pytest.mark.parametrize(
    ("ahead_s", "ok", "says"),
    [(0.0, True, "differs from the store's by 0 s"), (3600.0, False, "s behind the"),
     (-3600.0, False, "s ahead of the")],
)  # fmt: skip
def test_clock_is_compared_with_that_of_the_store(store, monkeypatch, ahead_s, ok, says):
    written_at = store.objects.written_at
    monkeypatch.setattr(store.objects, "written_at", lambda key: written_at(key) + ahead_s)
    (found,) = (check for check in doctor.diagnose(store) if check.name == "clock")
    assert (found.ok, found.is_required) == (ok, False)
    assert says in found.detail


def test_full_disks_and_file_systems_of_servers_are_warnings(store, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    monkeypatch.setattr(doctor, "file_system", lambda *_: "nfs4")
    found = {check.name: check for check in doctor.diagnose(store)}
    for name in ("store", "temporary files"):
        assert "1.0 GiB are free" in found[f"free space: {name}"].detail
        assert "nfs4: hard links and locks" in found[f"file system: {name}"].detail
    warnings = [check for name, check in found.items() if name.startswith(("free", "file"))]
    assert [(check.ok, check.is_required) for check in warnings] == [(False, False)] * 4


def test_weights_are_hashed_once(tmp_path, monkeypatch):
    folder = weights(tmp_path, monkeypatch)
    digests = [verified(weight, str(folder)) for weight in vbench_weights.WEIGHTS]
    monkeypatch.setattr("hashlib.file_digest", None)
    assert [verified(weight, str(folder)) for weight in vbench_weights.WEIGHTS] == digests


def test_domain_distance_needs_a_classifier_in_the_store(store):
    ok, detail = check_of(store, "frechet_domain")
    assert not ok
    assert "train_domain" in detail
    net = ClipClassifier(ClassifierConfig(classes=("a", "b")))
    rows = publish_model(net, store, weights=net.state_dict(), step=1, metrics={}, history=[])
    commit(store, "domain", MODELS, [rows])
    assert check_of(store, "frechet_domain") == (True, "can run")
