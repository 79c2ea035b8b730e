"""Loading networks by transformers: from a local folder, safely, or with an error of one line.

Nothing is downloaded, no pickle is loaded, no code of the folder runs, and no weight is missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from videoar.core.errors import ConfigError, one_line
from videoar.model.device import device
from videoar.model.pretrained.model_folder import library_version, model_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

SAFE = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of every `from_pretrained`."""
_LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError,
                RuntimeError, SafetensorError)  # fmt: skip
"""Raised by transformers for a folder of another kind; it has no error class of its own."""


@contextmanager
def loading(folder: str, kind: str) -> Iterator[None]:
    """Raise any error of loading as a ConfigError of one line, with the first sentence of it."""
    library_version()
    model_files(folder)
    try:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    except _LOAD_ERRORS as error:
        first_sentence = one_line(error).partition(". ")[0].removesuffix(".")
        is_package = isinstance(error, ImportError)
        hint = "install what is missing" if is_package else f"give the folder of {kind}"
        what = f"not usable: {first_sentence or type(error).__name__}"
        raise ConfigError(folder, what, hint) from error


def load_network(
    kind: "type[_BaseAutoModelClass | PreTrainedModel]", folder: str, dtype: torch.dtype | str
) -> "PreTrainedModel":
    """Load a network onto this process's device, in evaluation mode.

    Args:
        kind: Auto class, or class of one architecture.
        folder: where transformers saved it.
        dtype: of the weights; `auto` is the one they are stored in.

    Raises:
        ValueError: weights are missing; transformers would initialise them at random.
    """
    net, info = kind.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **SAFE
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{type(net).__name__} lacks {len(missing)} weights ({missing[0]} ...)")
    return net.to(device()).eval()
