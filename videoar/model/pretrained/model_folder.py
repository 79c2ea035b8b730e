"""The fingerprint of a pretrained model, computed without torch: planning a run needs it."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json

_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}
"""Files that loading may read: weights, configs, chat templates, vocabularies."""


LITE0 = "lite0"
"""In place of a folder: EfficientNet-Lite0, which every installation has."""
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def model_digest(model: str) -> str:
    """Return the digest of a model's weights and settings.

    Args:
        model: a folder, or `LITE0`.

    Raises:
        ConfigError: no such model folder.
    """
    return LITE0_SHA256 if model == LITE0 else folder_digest(model)


def pretrained_fingerprint(folder: str) -> Mapping[str, str]:
    """Return what the output depends on: digest of the model and version of what runs it.

    Args:
        folder: or `LITE0`.

    Raises:
        ConfigError: no such model folder, or transformers is not installed.
    """
    runs_it = {} if folder == LITE0 else {"transformers": library_version()}
    return {**runs_it, "model": model_digest(folder)}


def text_encoder_fields(folder: str) -> Mapping[str, str]:
    """Return the fields of `ModelConfig` that name the frozen text encoder of a folder.

    The version of transformers is not among them: a newer one must still load the model.

    Args:
        folder: empty for the embedded encoder, which needs none.

    Raises:
        ConfigError: no such model folder.
    """
    name = Path(folder).resolve().name
    return {"text_encoder": folder_digest(folder), "text_encoder_name": name} if folder else {}


def library_version() -> str:
    """Return the version of transformers.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("transformers")
    except PackageNotFoundError:
        raise ConfigError("transformers", "not installed", "install videoar[caption]") from None


def model_files(folder: str) -> list[Path]:
    """Return the files that loading may read, in a fixed order.

    Raises:
        ConfigError: the folder holds no model whose weights are safetensors.
    """
    root = Path(folder)
    hint = "give a local folder with config.json and weights as .safetensors"
    if not root.is_dir():
        raise ConfigError(folder, "no such model folder", hint)
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix in _SUFFIXES)
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if Path("config.json") not in names:
        raise ConfigError(folder, "holds no config.json", hint)
    if not any(name.suffix == ".safetensors" for name in names):
        raise ConfigError(folder, "holds no .safetensors file; pickled weights are not read", hint)
    return [root / name for name in names]


def folder_digest(folder: str) -> str:
    """Return the SHA-256 over names and contents of a model's files.

    Unchanged files (path, size, modification time) are hashed once per process.

    Raises:
        ConfigError: the folder holds no model, or a file cannot be read.
    """
    files = model_files(folder)
    try:
        digests = {path.relative_to(folder).as_posix(): _file_digest(path) for path in files}
    except OSError as error:
        raise ConfigError(folder, f"cannot be read: {error}") from error
    return digest_json(digests)


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    # Size and time are part of the cache's key only: a changed file is hashed again.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
