"""Frozen text encoders of the T5 family from a local folder.

B batch, P text tokens, D text width.
Source: arXiv 2412.04431 (Infinity) and 2511.04675 (InfinityStar), which condition on flan-t5-xl.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from videoar.core.errors import ConfigError
from videoar.model.device import device
from videoar.model.pretrained.loading import SAFE, load_network, loading
from videoar.model.pretrained.model_folder import folder_digest
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.text import Text

_VOCABULARIES = ("tokenizer.json", "spiece.model")


class T5TextEncoder:
    """Last hidden states of the encoder of a T5 or UMT5 model.

    Features are rounded to float16, in which `TextFeatures` stores them: whether they were stored
    does not change what a model is given.

    Args:
        folder: model and tokenizer as transformers saves them; weights of a decoder are not read.
        width: D that the caller needs.
        max_tokens: further tokens of a prompt are dropped.

    Raises:
        ConfigError: the folder holds no such model, or one of another width.
    """

    def __init__(self, folder: str, width: int, max_tokens: int) -> None:
        self.width, self.digest, self._max_tokens = width, folder_digest(folder), max_tokens
        with loading(folder, "a T5 or UMT5 model with its tokenizer"):
            from transformers import AutoConfig, AutoTokenizer, T5EncoderModel, UMT5EncoderModel

            config = AutoConfig.from_pretrained(folder, **SAFE)
            kinds = {"t5": T5EncoderModel, "umt5": UMT5EncoderModel}
            if config.model_type not in kinds:
                raise ValueError(f"model_type is {config.model_type!r}, not one of {list(kinds)}")
            if config.d_model != width:
                what = f"a text encoder of width {config.d_model}; the model has text_width {width}"
                raise ConfigError(folder, what, f"set model.text_width to {config.d_model}")
            # Without the file transformers makes an empty vocabulary: every word is unknown.
            if not any((Path(folder) / name).is_file() for name in _VOCABULARIES):
                raise ValueError(f"holds none of {', '.join(_VOCABULARIES)}")
            self._tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
            if len(self._tokenizer) > config.vocab_size:
                sizes = f"{len(self._tokenizer)} tokens, the model {config.vocab_size}"
                raise ValueError(f"the tokenizer has {sizes}")
            # Not float16: activations of T5 exceed its range.
            dtype = torch.bfloat16 if device() == "cuda" else torch.float32
            self._net = load_network(kinds[config.model_type], folder, dtype).requires_grad_(False)
            # The token that ends every prompt; an empty prompt may consist of it alone.
            self._end = config.eos_token_id
            if not self([""]).features_BPD.isfinite().all():
                raise ValueError("returns features that are not finite")

    @torch.no_grad()  # not inference_mode: its tensors cannot take part in training
    def __call__(self, prompts: Sequence[str]) -> Text:
        """Encode prompts, to float16; features of padding are 0."""
        tokens = self._tokenizer(list(prompts), truncation=True, max_length=self._max_tokens)
        rows = [torch.tensor(row or [self._end]) for row in tokens["input_ids"]]
        tokens_BP = pad_sequence(rows, batch_first=True).to(self._net.device)
        lengths = torch.tensor([len(row) for row in rows], device=self._net.device)
        mask_BP = torch.arange(tokens_BP.shape[1], device=lengths.device) < lengths[:, None]
        with torch.autocast(lengths.device.type, enabled=False):
            output = self._net(input_ids=tokens_BP, attention_mask=mask_BP.long())
        features_BPD = output.last_hidden_state.masked_fill(~mask_BP[..., None], 0)
        return Text(features_BPD.half(), mask_BP)


def load_text_encoder(cfg: ModelConfig, folder: str) -> T5TextEncoder | None:
    """Load the frozen text encoder of a model; None for the embedded one.

    Args:
        cfg: of the model.
        folder: empty for none.

    Raises:
        ConfigError: the folder cannot be loaded or holds another encoder, or the model needs one,
            or none.
    """
    name, digest = cfg.text_encoder_name, cfg.text_encoder
    if folder and not digest:
        what = "the model was trained with its own text encoder"
        raise ConfigError(folder, what, "leave text_encoder out")
    if digest and not folder:
        what = f"the model needs {name}, the text encoder of digest {digest[:16]}"
        raise ConfigError("text_encoder", what, "give its folder")
    if folder and (given := folder_digest(folder)) != digest:
        what = f"digest {given[:16]}; the model was trained with {name} of digest {digest[:16]}"
        raise ConfigError(folder, what, "give the folder of that text encoder")
    return T5TextEncoder(folder, cfg.text_width, cfg.max_text_tokens) if folder else None


def require_same_text_encoder(start: ModelConfig, cfg: ModelConfig) -> None:
    """Check that a model continues with the text encoder that its start was trained with.

    Raises:
        ConfigError: it is another one.
    """
    if start.text_encoder != cfg.text_encoder:
        needs, has = (c.text_encoder_name or "the embedded encoder" for c in (start, cfg))
        what = f"{has} is another text encoder than {needs}, which the start was trained with"
        raise ConfigError("text_encoder", what, "give that one, or train without start")


def prepare_to_sample(model: VideoAR, folder: str) -> None:
    """Load the text encoder of a model, "" for the embedded one; on a GPU convert it to bf16.

    Raises:
        ConfigError: see `load_text_encoder`.
    """
    encoder = load_text_encoder(model.cfg, folder)
    if encoder is not None:
        model.set_text_encoder(encoder)
    if model.device.type == "cuda":
        model.to_bf16()
