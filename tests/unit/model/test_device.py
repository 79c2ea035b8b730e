"""Where networks run."""

import pytest
import torch

from videoar.core.errors import StageError
from videoar.model.device import device


@pytest.mark.parametrize("given", [None, "", "-1"])
def test_device_without_a_gpu_is_the_cpu(given, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert device() == "cpu"


def test_assigned_gpu_that_torch_cannot_use_is_an_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StageError, match="CUDA_VISIBLE_DEVICES=3, but torch"):
        device()
