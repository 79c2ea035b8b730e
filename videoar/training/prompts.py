"""The text that a model is conditioned on, from the caption or the class of a clip. Torch-free.

Training and sampling must use the same templates: to a text encoder, other words are another text.
"""

import re

from pydantic import field_validator

from videoar.core.types import Frozen

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


def plain_words(name: str) -> str:
    """Return a class name as words: `ApplyEyeMakeup` and `apply_eye_makeup` as apply eye makeup."""
    return " ".join(_WORD_STARTS.sub(" ", name).split()).lower()
