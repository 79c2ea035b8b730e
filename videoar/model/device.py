"""The device of this process: one rule for all networks."""

import torch

from videoar.core.errors import StageError
from videoar.core.settings import visible_gpus


def device() -> str:
    """Return `cuda` if a GPU is visible to this process, else `cpu`.

    On Ray only the GPUs of the stage's `resources.gpus` are visible.

    Raises:
        StageError: the process was assigned a GPU that torch cannot use. Falling back to the CPU
            would make a training take weeks without an error.
    """
    if torch.cuda.is_available():
        return "cuda"
    if assigned := visible_gpus():
        what = f"CUDA_VISIBLE_DEVICES={assigned}, but torch {torch.__version__} finds no GPU"
        hint = "install a torch with CUDA, check the driver (nvidia-smi), or ask for no GPU"
        raise StageError("device", what, hint)
    return "cpu"


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def limit_threads(cpus: float) -> None:
    """Let torch use as many threads as the stage has cores; by default it would use them all."""
    torch.set_num_threads(max(1, int(cpus)))
