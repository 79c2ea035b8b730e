"""Tiny pretrained models of real classes with random weights, saved by transformers.

Weights cannot be fetched in a test; everything else that loading does is the same.
"""

from pathlib import Path

import pytest
import torch

from tests.support.clip_rows import clips_of, drawn_rows
from videoar.media.synthetic import scenes

transformers = pytest.importorskip("transformers", reason="videoar[caption] is not installed")

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
IMAGE, QWEN_IMAGE, QWEN_VIDEO = "<image>", "<|image_pad|>", "<|video_pad|>"
WORDS = (PAD, START, END, UNKNOWN, IMAGE, QWEN_IMAGE, QWEN_VIDEO, "user", "assistant",
         "what", "is", "this", "a")  # fmt: skip
MADE = tuple(f"word{i}" for i in range(24))
"""Words that a random model can write besides those of its prompt."""
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TEXT = SIZES | {"vocab_size": len(WORDS + MADE), "num_attention_heads": 2, "pad_token_id": 0,
                "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
VISION = SIZES | {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
PIXELS = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }} {% endfor %}{% endfor %}assistant"
)


def _save(folder: Path, *parts, seed: int) -> str:
    for part in parts:
        if isinstance(part, torch.nn.Module):
            generator = torch.Generator().manual_seed(seed)
            for weight in (
                part.parameters()
            ):  # the classes' own initialization leaves pooled features at zero
                weight.data.normal_(0, 0.3, generator=generator)
        part.save_pretrained(folder)
    return str(folder)


def _tokenizer(words=WORDS + MADE, ends=False):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, ids[END])]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[w for w in (IMAGE, QWEN_IMAGE, QWEN_VIDEO) if w in words],
    )


def llava(folder: Path, seed: int = 0, silent: bool = False) -> str:
    """LLaVA: chat, images as tokens of the text. `silent`: the first token ends the answer."""
    from transformers.models.clip import CLIPImageProcessorPil

    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION | {"num_hidden_layers": 2}),
        text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=2),
        image_token_index=WORDS.index(IMAGE),
    )
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(**PIXELS), _tokenizer(), patch_size=8, chat_template=CHAT,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    if silent:
        model.generation_config.suppress_tokens = [i for i in range(len(WORDS + MADE)) if i != 2]
    return _save(folder, model, processor, seed=seed)


def qwen2_vl(folder: Path, seed: int = 0) -> str:
    """Chat; its processor needs torchvision for videos."""
    from transformers.models.qwen2_vl import Qwen2VLImageProcessorPil

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={
            "embed_dim": 16, "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 4,
        },
        image_token_id=WORDS.index(QWEN_IMAGE), video_token_id=WORDS.index(QWEN_VIDEO),
        vision_start_token_id=WORDS.index("is"), vision_end_token_id=WORDS.index("a"),
    )  # fmt: skip
    tokenizer = _tokenizer()
    tokenizer.chat_template = CHAT.replace(IMAGE, f"is {QWEN_IMAGE} a")
    pixels = Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    model = transformers.Qwen2VLForConditionalGeneration(config)
    return _save(folder, model, tokenizer, pixels, seed=seed)


def blip(folder: Path, seed: int = 0) -> str:
    """No chat: one image and the beginning of its caption."""
    from transformers.models.blip import BlipImageProcessorPil

    config = transformers.BlipConfig(
        text_config=TEXT | {"encoder_hidden_size": 16, "sep_token_id": 2}, vision_config=VISION
    )
    processor = transformers.BlipProcessor(BlipImageProcessorPil(size=PIXELS["size"]), _tokenizer())
    return _save(folder, transformers.BlipForConditionalGeneration(config), processor, seed=seed)


def clip(folder: Path, seed: int = 0) -> str:
    """Both towers, joint embeddings of 12 numbers."""
    from transformers.models.clip import CLIPImageProcessorPil

    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    pixels = CLIPImageProcessorPil(**PIXELS)
    return _save(folder, transformers.CLIPModel(config), pixels, seed=seed)


def clip_vision(folder: Path, seed: int = 0) -> str:
    """The vision tower alone."""
    from transformers.models.clip import CLIPImageProcessorPil

    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    return _save(folder, model, CLIPImageProcessorPil(**PIXELS), seed=seed)


def siglip(folder: Path, seed: int = 0) -> str:
    """Both towers, pooled by attention."""
    from transformers.models.siglip import SiglipImageProcessorPil

    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    pixels = SiglipImageProcessorPil(size=PIXELS["size"])
    return _save(folder, transformers.SiglipModel(config), pixels, seed=seed)


def dinov2(folder: Path, seed: int = 0) -> str:
    """Vision only."""
    from transformers.models.bit import BitImageProcessorPil

    model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION, mlp_ratio=1))
    return _save(folder, model, BitImageProcessorPil(**PIXELS), seed=seed)


def ijepa(folder: Path, seed: int = 0) -> str:
    """No pooled output: features of the patches only."""
    from transformers.models.vit import ViTImageProcessorPil

    model = transformers.IJepaModel(transformers.IJepaConfig(**VISION))
    return _save(folder, model, ViTImageProcessorPil(size=PIXELS["size"]), seed=seed)


def t5(folder: Path, seed: int = 0, kind: str = "T5", width: int = 32, ends: bool = True) -> str:
    """Encoder and decoder, as published; `ends`: the tokenizer ends a text with its end token."""
    words = (
        PAD,
        START,
        END,
        UNKNOWN,
        *["a", "red", "blue", "circle", "square", "moving", "left", "up", "right"],
    )
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, dropout_rate=0.5,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return _save(folder, model, _tokenizer(words, ends), seed=seed)


def umt5(folder: Path, seed: int = 0, **options) -> str:
    """Like T5, with a relative position bias in every layer."""
    return t5(folder, seed, kind="UMT5", **options)


def drawn_clips(store, captions):
    """Commit one drawn clip per caption; None: a clip without a caption."""
    rows = drawn_rows(store, scenes()[: len(captions)])
    for row, caption in zip(rows, captions, strict=True):
        row |= {"caption": caption, "caption_source": caption and "labels"}
    return clips_of(store, rows)
