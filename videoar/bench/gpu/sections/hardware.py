"""The machine: versions, and what its matrix units and memory reach."""

import hashlib
import platform
from pathlib import Path

import torch

import videoar
from videoar.bench.flops import peak_flops
from videoar.bench.gpu.measure import median_ms
from videoar.bench.gpu.section import Result, Section
from videoar.core.hardware import hardware
from videoar.core.software import commit_id

_SIDE = 8192


def run(section: Section) -> None:
    """Measure the machine."""
    side = _SIDE if section.device.type == "cuda" else 256
    section.case("machine", _describe)
    section.case("bf16 matrix product", _matmul, side)
    section.case("copy", _copy, side)


def _describe(section: Section, result: Result) -> None:
    result |= {
        "hardware": hardware(), "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "commit": commit_id(),
        "source_sha256": source_digest(), "headline": section.workload.headline,
    }  # fmt: skip
    if section.device.type == "cuda":
        card = torch.cuda.get_device_properties(section.device)
        result |= {
            "card": card.name, "memory_gib": round(card.total_memory / 2**30, 1),
            "peak_bf16_flops": peak_flops(card.name),
        }  # fmt: skip


def source_digest() -> str:
    """Return the SHA-256 of the package's source: a copy without git has no commit."""
    sha256, package = hashlib.sha256(), Path(videoar.__file__).parent
    for path in sorted(package.rglob("*.py")):
        sha256.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return sha256.hexdigest()


def _matmul(section: Section, result: Result, side: int) -> None:
    # random data: a product of zeros takes less power and so runs at a higher clock
    device = section.device
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    ms = median_ms(lambda: a @ b, device, seconds=1.0, most=50)
    result |= {"side": side, "ms": ms, "flops_per_s": 2 * side**3 / (ms / 1000)}


def _copy(section: Section, result: Result, side: int) -> None:
    source = torch.randn(side, side, 8, device=section.device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), section.device, seconds=0.5, most=50)
    # counts what is read and what is written
    result |= {"ms": ms, "bytes_per_s": 2 * source.nbytes / (ms / 1000)}
