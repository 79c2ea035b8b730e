"""The weight files of VBench: where it looks for them, which dimensions need them, their licences.

Source: VBench 0.1.5 vbench/utils.py (`init_submodules`, paths below VBENCH_CACHE_DIR); digests from
the addresses and names of the files. Of the others no digest is published: theirs are recorded in
the lock, so that scores of other files are not comparable.
"""

import hashlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from videoar.core.errors import ConfigError

_CLIP_B, _CLIP_L = "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt"
_CONSISTENCY = ("temporal_style", "overall_consistency")
_DETECTION = ("object_class", "multiple_objects", "color", "spatial_relationship")


@dataclass(frozen=True)
class Weight:
    """A file below the folder of weights."""

    path: str
    dimensions: tuple[str, ...]
    sha256: str = ""
    """Its SHA-256 or the beginning of it; empty: none is published."""
    non_commercial: str = ""
    """What forbids commercial use."""


WEIGHTS = (
    Weight("dino_model/dino_vitbase16_pretrain.pth", ("subject_consistency",)),
    # the code of the network: VBench would clone it
    Weight("dino_model/facebookresearch_dino_main/hubconf.py", ("subject_consistency",)),
    Weight(
        _CLIP_B,
        ("background_consistency", "appearance_style"),
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    Weight(
        _CLIP_L,
        ("aesthetic_quality",),
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
    Weight("aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth", ("aesthetic_quality",)),
    Weight("amt_model/amt-s.pth", ("motion_smoothness",), non_commercial="AMT is CC BY-NC 4.0"),
    Weight("raft_model/models/raft-things.pth", ("dynamic_degree",)),
    Weight(
        "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
        ("imaging_quality",),
        "358bb6af",
        "pyiqa is PolyForm-Noncommercial",
    ),
    Weight("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth", ("human_action",)),
    Weight("grit_model/grit_b_densecap_objectdet.pth", _DETECTION),
    Weight("caption_model/tag2text_swin_14m.pth", ("scene",)),
    Weight("ViCLIP/ViClip-InternVid-10M-FLT.pth", _CONSISTENCY),
)


def weights_of(dimension: str) -> list[Weight]:
    """Return the files that a dimension needs."""
    return [weight for weight in WEIGHTS if dimension in weight.dimensions]


def licence_warnings(dimensions: Collection[str]) -> list[str]:
    """Return what forbids commercial use of the scores of some dimensions."""
    return [
        f"{weight.non_commercial}: no commercial use of {', '.join(weight.dimensions)}"
        for weight in WEIGHTS
        if weight.non_commercial and set(weight.dimensions) & set(dimensions)
    ]


def verified(weight: Weight, folder: str) -> str:
    """Return the SHA-256 of a weight file, see `_sha256`.

    Args:
        weight: the file.
        folder: of `VIDEOAR_VBENCH_CACHE`.

    Raises:
        ConfigError: there is no such folder or file, or it has another digest.
    """
    if not folder:
        raise ConfigError("VIDEOAR_VBENCH_CACHE", "is not set", "name the folder of weights")
    path = Path(folder, weight.path)
    try:
        digest = _sha256(path)
    except OSError as error:
        hint = "put it there; nothing is downloaded"
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", hint) from error
    if not digest.startswith(weight.sha256):
        what = f"has SHA-256 {digest[:12]}..., not {weight.sha256[:12]}..."
        raise ConfigError(str(path), what, "fetch the file of VBench")
    return digest


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, from the record beside it unless the file has changed since.

    The files have gigabytes, and every plan and `videoar doctor` asks for them. The kernel sets
    `ctime`, so a file that was replaced under its old size and date is hashed again.
    """
    status, record = path.stat(), path.with_name(f"{path.name}.videoar-sha256")
    state = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} "
    known = record.read_text() if record.is_file() else ""
    if known.startswith(state) and known.endswith("\n"):  # written to its end
        return known.removeprefix(state).strip()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a folder that cannot be written is hashed each time
        record.write_text(f"{state}{digest}\n")
    return digest
