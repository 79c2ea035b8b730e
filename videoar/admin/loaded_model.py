"""A model ready for use: from an export, which needs no store, or from a store."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from videoar.admin.export_model import CARD, PARTS, SINGLE_FILE, TOKENIZER, content_digest
from videoar.admin.model_card import ModelCard, from_markdown
from videoar.admin.model_records import card_of
from videoar.core.errors import ConfigError, ContractError, DamagedError
from videoar.core.ids import digest_json
from videoar.media.transcode import encode_clips
from videoar.model.device import device
from videoar.model.pretrained.text_encoder import prepare_to_sample
from videoar.model.tokenizer.network import VideoTokenizer, frames_from_video
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.text import TextEncoder
from videoar.storage.store import Store
from videoar.training.checkpoint import reading
from videoar.training.generation import CRF, VideoGenerator, frames_in, lineage_tags
from videoar.training.init_video import InitVideo, read_init
from videoar.training.model_store import (
    Network,
    build_network,
    load_model,
    load_tokenizer,
    load_transformer,
)
from videoar.training.prompts import Prompt, PromptTemplates
from videoar.training.sampler_options import ProjectedGuidance, SamplerOptions

_AGAIN = "export the model again"
_MAX_SECONDS = 600  # chosen: the longest source that is read, by default


@dataclass(frozen=True)
class GeneratedVideo:
    """One generated video."""

    video_B3THW: Tensor
    """In [-1, 1]; B is 1."""
    steps: int
    """Sequential forward passes."""
    rate_fps: float
    """Frame rate."""
    tags: Mapping[str, str]
    """Metadata of the file: prompt, model and seed."""

    def mp4(self) -> bytes:
        """Return it as an H.264 MP4."""
        frames_BTHWC = frames_from_video(self.video_B3THW).cpu().numpy()
        (data,) = encode_clips(list(frames_BTHWC), self.rate_fps, CRF, [self.tags])
        return data

    def save(self, path: str | Path) -> Path:
        """Write an H.264 MP4; return its path.

        Raises:
            ConfigError: the file cannot be written.
        """
        data = self.mp4()
        try:
            Path(path).write_bytes(data)
        except OSError as error:
            raise ConfigError(str(path), f"cannot be written: {error.strerror}") from error
        return Path(path)


class SampleOptions(TypedDict, total=False):
    """How samples are generated; None is the same as leaving an option out."""

    seconds: float | None
    """Duration, rounded to the next possible number of frames. Default: that of the longest clip
    that the model was trained on."""
    init: str | Path | InitVideo
    """Image or video that every sample begins with, see `read_init`; or its tokens."""
    guidance: str | float | None
    """This and all that follow: see `SamplerOptions`. Default: as the samples that were scored."""
    temperature: float | Sequence[float] | None
    greedy: bool | None
    guidance_interval: tuple[float, float] | None
    apg: ProjectedGuidance | Mapping[str, float] | None


@dataclass(frozen=True)
class LoadedModel:
    """A transformer and its tokenizer, checked against each other, in evaluation mode.

    On a GPU the weights of the transformer are converted to bf16, see `prepare_to_sample`.
    """

    model: VideoAR
    tokenizer: VideoTokenizer
    card: ModelCard

    def __post_init__(self) -> None:
        try:
            self.model.cfg.require_fit(self.tokenizer.cfg)
        except ValueError as error:
            raise ContractError(self.card.model.snapshot, str(error), _AGAIN) from error

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The frozen text encoder; None if it is part of the model."""
        return self.model.text_encoder if self.model.cfg.text_encoder else None

    @property
    def templates(self) -> PromptTemplates:
        """Those of the training."""
        return PromptTemplates(**{n: getattr(self.card, n) for n in PromptTemplates.model_fields})

    def sample(
        self, prompt: str, *, seed: int = 0, **options: Unpack[SampleOptions]
    ) -> GeneratedVideo:
        """Generate one video.

        Args:
            prompt: text; the template of the training is applied to it.
            seed: equal seeds give equal videos.
            **options: see `SampleOptions`.

        Raises:
            ConfigError: the prompt cannot be used; or see `generator`.
            MediaError: see `generator`.
        """
        text = self.templates.prompt(Prompt(prompt=prompt).row("prompt")["prompt"])
        generator = self.generator(**options)
        made = generator.sample([{"prompt": text, "seed": seed}])
        tags = lineage_tags(text, generator.model_id, seed)
        return GeneratedVideo(*made, generator.columns["rate_fps"], tags)

    def generator(self, **options: Unpack[SampleOptions]) -> VideoGenerator:
        """Return what generates batches of videos with these options.

        Videos that are longer than the clips of the training have a sliding window of that length.

        Raises:
            ConfigError: the frame rate or length is not known; an option is out of range or does
                not fit the model; or `init` is too long.
            MediaError: `init` cannot be decoded.
        """
        num_frames, rate_fps = self._shape(options.get("seconds"))
        init, sampler = options.get("init") or "", SamplerOptions.of(self.card.sampler, options)
        start = init if isinstance(init, InitVideo) else None
        if init and not start:
            start = read_init(str(init), self.tokenizer, num_frames, rate_fps)
        columns = {
            "model_digest": self.card.model.digest,
            "tokenizer_digest": self.card.tokenizer.digest,
            "num_frames": num_frames,
            "rate_fps": rate_fps,
        }
        return VideoGenerator(
            self.model,
            self.tokenizer,
            self.card.model.snapshot,
            columns,
            sampler,
            start=start,
            trained_frames=self.card.num_frames,
        ).checked()

    def _shape(self, seconds: float | None) -> tuple[int, float]:
        """Return number of frames, 1 + a multiple of the time stride, and frame rate."""
        card, stride = self.card, self.model.cfg.time_stride
        if card.rate_fps is None or card.num_frames is None:
            what = "its frame rate is not known: all clips that it was trained on were withdrawn"
            raise ConfigError(card.model.snapshot, what, "use videoar.model.sample")
        if seconds is None:
            return card.num_frames, card.rate_fps
        if not 0 < seconds <= _MAX_SECONDS:  # false for NaN, too
            what = f"is not above 0 and at most {_MAX_SECONDS}"
            raise ConfigError(f"seconds={seconds}", what)
        return frames_in(seconds, card.rate_fps, stride), card.rate_fps


def load_stored(
    store: Store, name: str, *, text_encoder: str = "", on: str | None = None
) -> LoadedModel:
    """Load a transformer of a store and the tokenizer that it was trained on.

    Args:
        store: where they are.
        name: of the transformer.
        text_encoder: folder of its frozen text encoder; empty for the embedded one.
        on: device; by default a GPU if there is one.

    Raises:
        ConfigError: the name is no transformer, or the store does not have its tokenizer, or the
            text encoder is another one.
        ContractError: a file does not hold what its row says.
        StorageError: a file is damaged or missing, or nothing in the store has this name.
    """
    card, where = card_of(store, name), on or device()
    model, _ = load_transformer(store.snapshot(card.model.snapshot), store, where)
    tokenizer, _ = load_tokenizer(store.snapshot(card.tokenizer.snapshot), store, where)
    prepare_to_sample(model, text_encoder)
    return LoadedModel(model, tokenizer, card)


def is_export(path: Path) -> bool:
    """Return whether a path is that of an export; a name of a store may exist as a path, too."""
    return path.is_file() or any((path / name).is_file() for name in (CARD, SINGLE_FILE))


def load_export(path: Path, *, text_encoder: str = "", on: str | None = None) -> LoadedModel:
    """Load an export, as a folder or as a file; every byte of the networks is checked.

    Args:
        path: of the folder or file.
        text_encoder: see `load_stored`.
        on: see `load_stored`.

    Raises:
        ConfigError: there is no export, or the text encoder is another one.
        ContractError: a file is not what the card says, or not of the same version.
        DamagedError: a checksum differs.
    """
    file = path / SINGLE_FILE if (path / SINGLE_FILE).is_file() else path
    if not is_export(path):
        raise ConfigError(str(path), "no exported model", "write one with: videoar export")
    card, networks = _from_file(file) if file.is_file() else _from_folder(path)
    model, tokenizer = (network.to(on or device()).eval() for network in networks)
    if not isinstance(model, VideoAR) or not isinstance(tokenizer, VideoTokenizer):
        raise ContractError(str(path), "holds other networks than its card says", _AGAIN)
    prepare_to_sample(model, text_encoder)
    return LoadedModel(model, tokenizer, card)


def _from_folder(folder: Path) -> tuple[ModelCard, list[Network]]:
    with reading(folder / CARD) as path:
        text = path.read_text(encoding="utf-8")
    card = from_markdown(text, str(folder / CARD))
    for name, sha256 in card.checksums.items():
        with reading(folder / name) as path, path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise DamagedError(str(path), "damaged: wrong SHA-256", _AGAIN)
    prefix = f"{TOKENIZER}/"
    of_tokenizer = {
        name.removeprefix(prefix): sha256
        for name, sha256 in card.checksums.items()
        if name.startswith(prefix)
    }
    of_model = {k: v for k, v in card.checksums.items() if not k.startswith(prefix)}
    # the digests are over names and checksums of the files: no file can be missing from the list
    for network, files in ((card.model, of_model), (card.tokenizer, of_tokenizer)):
        if digest_json([list(file) for file in sorted(files.items())]) != network.digest:
            what = f"its checksums are not those of {network.digest}"
            raise ContractError(str(folder / CARD), what, _AGAIN)
    return card, [load_model(folder), load_model(folder / TOKENIZER)]


def _from_file(file: Path) -> tuple[ModelCard, list[Network]]:
    with reading(file) as path:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata()
        configs, text = [metadata[part] for part in PARTS], metadata["card"]
        tensors = load_file(path)
    card = from_markdown(text, str(file))
    return card, [
        _network(file, part, config, tensors, card.checksums.get(part))
        for part, config in zip(PARTS, configs, strict=True)
    ]


def _network(
    file: Path, part: str, config: str, tensors: Mapping[str, Tensor], sha256: str | None
) -> Network:
    prefix = f"{part}."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if content_digest(config, own) != sha256:
        raise DamagedError(str(file), f"damaged: wrong SHA-256 of its {part}", _AGAIN)
    with reading(file):
        network = build_network(json.loads(config))
        network.load_state_dict(own)
    return network
