"""The text that a model is conditioned on, from the caption or the class of a clip. Torch-free.

Training and sampling must use the same templates: to a text encoder, other words are another text.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError, field_validator

from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json, seed_from
from videoar.core.printable import printable
from videoar.core.types import Frozen, Row

if TYPE_CHECKING:  # trainings on tensors alone run without pyarrow
    from videoar.storage.snapshot import Snapshot

PROMPT_FILES = (".txt", ".jsonl")
"""What the name of a file of prompts ends with."""
NUM_CAPTIONS = 16
"""Chosen: prompts of captions by default, enough to look at."""
MAX_CHARS = 4000
"""Chosen: 512 tokens of T5, the most that a model reads, are some 2,500 characters of English."""
_MAX_SEED = 2**63 - 1
_ROWS_AT_ONCE = 4096
_CAPTION, _LABEL = "{caption}", "{label}"
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_")


class PromptTemplates(Frozen):
    """Options that turn captions and class names into prompts."""

    caption_template: str = _CAPTION
    """Prompt of a clip with a caption, which replaces `{caption}`."""
    class_template: str = f"Generate a video of {_LABEL}"
    """Prompt of a clip with a class but without a caption that says more than the class, whose name
    in plain words (`ApplyEyeMakeup`: apply eye makeup) replaces `{label}`; empty for no template.
    Source: arXiv 2601.05966 figure 2."""

    @field_validator("caption_template")
    @classmethod
    def _check_caption(cls, template: str) -> str:
        if _CAPTION not in template:
            raise ValueError(f"has no {_CAPTION}")
        return template

    @field_validator("class_template")
    @classmethod
    def _check_class(cls, template: str) -> str:
        if template and _LABEL not in template:
            raise ValueError(f"has no {_LABEL}")
        return template

    def prompt(self, caption: str | None, label: str | None = None) -> str:
        """Return the prompt of a clip; empty for one without caption and class.

        A caption that is only the name of the class counts as none: datasets with a folder per
        class have such captions.
        """
        if label and self.class_template:
            words = plain_words(label)
            if not caption or plain_words(caption) == words:
                return self.class_template.replace(_LABEL, words)
        return self.caption_template.replace(_CAPTION, caption) if caption else ""

    def prompts_of(self, clips: "Snapshot", seed: int, num: int | None = None) -> list[Row]:
        """Return rows of `prompts@1` from captions and classes: one per distinct text.

        Chosen and ordered by a hash per text: new clips add prompts without reordering the others.

        Args:
            clips: snapshot of `clips@1`.
            seed: of the choice.
            num: maximum number of prompts; default `NUM_CAPTIONS`.

        Raises:
            ConfigError: no clip has a caption or class.
        """
        columns = clips.table(["caption", "label"]).to_pydict()
        pairs = zip(columns["caption"], columns["label"], strict=True)
        texts = {(self.prompt(caption, label), label, caption) for caption, label in pairs}
        # sorted: which clip's label a shared prompt gets must not depend on the order of files
        found = {text: (label, caption) for text, label, caption in sorted(texts, key=str) if text}
        if not found:
            raise ConfigError(clips.id, "has no captions or classes", "give prompts")
        chosen = sorted(found, key=lambda text: seed_from("prompt", seed, text))
        return [
            Prompt(prompt=caption or "", label=label).row("caption")
            for label, caption in (found[text] for text in chosen[: num or NUM_CAPTIONS])
        ]

    def samples(self, prompts: Iterable[Row], seed: int, num_per_prompt: int) -> Iterator[Row]:
        """Yield the samples of prompts: prompt_id, prompt, label, index and seed of each.

        The seed of a sample depends on `seed`, the text and the number of the sample among those of
        the text: other prompts, shards or batches leave it as it is. A row with a seed is one
        sample.

        Args:
            prompts: rows of `prompts@1`.
            seed: of all samples.
            num_per_prompt: samples of a row.
        """
        seen = set[bytes]()
        for row in prompts:
            text = self.prompt(row["prompt"] or None, row["label"])
            fixed = row["seed"] is not None
            first = row["index"] if fixed else row["index"] * num_per_prompt
            for index in range(first, first + (1 if fixed else num_per_prompt)):
                own = row["seed"] if fixed else seed_from("sample", seed, text, index)
                # equal prompts with equal seeds would be the same sample again
                if (key := _key(own, text)) not in seen:
                    seen.add(key)
                    yield {**row, "prompt": text, "index": index, "seed": own}


class Prompt(Frozen):
    """A row of `prompts@1`, and a line of a file of prompts in JSON."""

    prompt_id: str = ""
    """Empty: the digest of text and label."""
    prompt: str = ""
    label: str | None = None
    index: int = Field(default=0, ge=0, lt=2**31)
    seed: int | None = Field(default=None, ge=0, le=_MAX_SEED)

    def row(self, where: str) -> Row:
        """Return the row.

        Raises:
            ConfigError: it has neither a text nor a label, or one that cannot be used.
        """
        for text in (self.prompt, self.label or "", self.prompt_id):
            if printable(text) != text:
                what = "contains control characters or bytes that are not UTF-8"
                raise ConfigError(where, what, "a prompt is one line of text")
            if len(text) > MAX_CHARS:
                what = f"has {len(text)} characters, at most {MAX_CHARS} can be used"
                raise ConfigError(where, what)
        if not self.prompt.strip() and not self.label:
            raise ConfigError(where, "is empty", "write what the video shows")
        named = self.prompt_id or digest_json([self.prompt, self.label])[:32]
        return {**self.model_dump(), "prompt_id": named}


def read_prompts(data: bytes, where: str) -> Iterator[Row]:
    """Yield the rows of `prompts@1` of a file.

    Args:
        data: UTF-8 text, one prompt per line; blank and repeated lines are left out. If `where`
            ends with `.jsonl`, an object per line: `prompt` or `label`, and optionally `prompt_id`,
            `index` and `seed`.
        where: name of the file.

    Raises:
        ConfigError: it has no prompt, or one that cannot be used.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(where, f"is not UTF-8: {error.reason} at byte {error.start}") from error
    is_json = where.endswith(".jsonl")
    seen = set[bytes]()
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        place = f"{where}:{number}"
        row = (_parse_json(line, place) if is_json else Prompt(prompt=line)).row(place)
        if (key := _key(row["index"], row["prompt_id"])) not in seen:
            seen.add(key)
            yield row
        elif is_json:
            what = f"repeats prompt {row['prompt_id']}, index {row['index']}"
            raise ConfigError(place, what, "give it another index")
    if not seen:
        raise ConfigError(where, "holds no prompt", "write one prompt per line")


def stored_prompts(prompts: "Snapshot") -> Iterator[Row]:
    """Return the rows of a snapshot of `prompts@1`.

    Raises:
        ConfigError: it has no row.
    """
    table = prompts.table()
    if not table.num_rows:
        raise ConfigError(prompts.id, "holds no prompt")
    return (row for batch in table.to_batches(_ROWS_AT_ONCE) for row in batch.to_pylist())


def _key(number: int, text: str) -> bytes:
    """Return 16 bytes in place of both: a set of a million texts would take much more memory."""
    return hashlib.sha256(f"{number} {text}".encode()).digest()[:16]


def _parse_json(line: str, place: str) -> Prompt:
    try:
        return Prompt.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(place, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(place, f"is not JSON: {error}") from error


def plain_words(name: str) -> str:
    """Return a class name as words: `ApplyEyeMakeup` and `apply_eye_makeup` as apply eye makeup."""
    return " ".join(_WORD_STARTS.sub(" ", name).split()).lower()
