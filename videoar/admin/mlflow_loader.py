"""What `mlflow.pyfunc.load_model` loads a model of the registry by: no pickle, no MLflow, no store.

import mlflow

mlflow.set_tracking_uri("sqlite:///.videoar/mlflow.db")
model = mlflow.pyfunc.load_model("models:/videoar@champion")
(mp4,) = model.predict(["a prompt"], params={"seed": 1})
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from videoar.admin.loaded_model import LoadedModel, load_export


class Predictor:
    """A loaded model with the interface of `mlflow.pyfunc`."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def predict(
        self, model_input: Iterable[object], params: Mapping[str, Any] | None = None
    ) -> list[bytes]:
        """Return an H.264 MP4 per prompt.

        Args:
            model_input: a prompt, a sequence of them, or a data frame with them in its first
                column.
            params: `seed` and `seconds`, as those of `LoadedModel.sample`.

        Raises:
            ConfigError: a prompt or a parameter cannot be used.
        """
        cells = getattr(model_input, "iloc", None)  # of a data frame
        prompts = model_input if cells is None else cells[:, 0]
        given = params or {}
        seed, seconds = int(given.get("seed") or 0), given.get("seconds")
        sample = self._model.sample
        return [
            sample(str(prompt), seed=seed, seconds=seconds).mp4()
            for prompt in ([prompts] if isinstance(prompts, str) else prompts)
        ]


def _load_pyfunc(folder: str, config: Mapping[str, str] | None = None) -> Predictor:
    """Load an export; MLflow calls this by its name.

    Args:
        folder: of the files of a version.
        config: `text_encoder`, its folder, and `device`, as those of `videoar.load`.
    """
    given = config or {}
    encoder, device = given.get("text_encoder", ""), given.get("device") or None
    return Predictor(load_export(Path(folder), text_encoder=encoder, on=device))
