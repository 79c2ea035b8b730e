import json

import pytest
from pydantic import ValidationError

from videoar.core.errors import ConfigError
from videoar.training.prompts import PromptTemplates, plain_words, read_prompts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("front_crawl", "front crawl"),
        ("YoYo", "yo yo"),
        ("BMXRiding", "bmx riding"),
        ("Tai chi", "tai chi"),
        ("größer_Äpfel", "größer äpfel"),
        ("class12Jump", "class12 jump"),
        ("circle", "circle"),
    ],
)
def test_class_names_become_words(name, words):
    assert plain_words(name) == words


@pytest.mark.parametrize(
    ("caption", "label", "prompt"),
    [
        ("a man applying eyeliner", "ApplyEyeMakeup", "a man applying eyeliner"),
        (None, "ApplyEyeMakeup", "Generate a video of apply eye makeup"),
        ("", "ApplyEyeMakeup", "Generate a video of apply eye makeup"),
        ("ApplyEyeMakeup", "ApplyEyeMakeup", "Generate a video of apply eye makeup"),
        ("front crawl", "front_crawl", "Generate a video of front crawl"),
        ("a cat", None, "a cat"),
        (None, None, ""),
        ("", "", ""),
    ],
)
def test_prompt_of_a_clip(caption, label, prompt):
    assert PromptTemplates().prompt(caption, label) == prompt


def test_templates_are_options():
    own = PromptTemplates(caption_template="Video: {caption}.", class_template="{label}, {label}")
    assert own.prompt("a {label} cat", "Dog") == "Video: a {label} cat."
    assert own.prompt(None, "Dog") == "dog, dog"
    assert own.prompt(None, None) == ""
    assert PromptTemplates(class_template="").prompt("Dog", "Dog") == "Dog"
    assert PromptTemplates(class_template="").prompt(None, "Dog") == ""


@pytest.mark.parametrize("name", ["caption_template", "class_template"])
def test_template_without_its_place_is_rejected(name):
    with pytest.raises(ValidationError, match=r"has no \{"):
        PromptTemplates(**{name: "a video"})


def test_file_of_prompts_has_a_line_or_an_object_per_prompt():
    text = list(read_prompts("\ufeffa cat\r\n\n  gr\u00fcn \na cat\n".encode(), "p.txt"))
    assert [(row["prompt"], row["index"], row["seed"]) for row in text] == [
        ("a cat", 0, None), ("gr\u00fcn", 0, None),
    ]  # fmt: skip
    lines = [{"prompt": "a cat"}, {"label": "Dog", "prompt_id": "d", "index": 1, "seed": 5}]
    rows = list(read_prompts("\n".join(map(json.dumps, lines)).encode(), "p.jsonl"))
    assert rows[0] == text[0]
    assert rows[1] == {"prompt_id": "d", "prompt": "", "label": "Dog", "index": 1, "seed": 5}


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("p.txt", b"", "p.txt: holds no prompt"),
        ("p.txt", b" \n\n", "p.txt: holds no prompt"),
        ("p.txt", b"a cat\n\xff\xfe", "p.txt: is not UTF-8: invalid start byte at byte 6"),
        ("p.txt", b"a\x1b[31m cat", "p.txt:1: contains control characters"),
        ("p.txt", b"a\0cat", "p.txt:1: contains control characters"),
        ("p.txt", b"ok\n" + b"x" * 4001, "p.txt:2: has 4001 characters"),
        ("p.jsonl", b"{", "p.jsonl:1: is not JSON"),
        ("p.jsonl", b"[" * 100_000, "p.jsonl:1: is not JSON"),
        ("p.jsonl", b"[]", "p.jsonl:1: "),
        ("p.jsonl", b"{}", "p.jsonl:1: is empty"),
        ("p.jsonl", b'{"prompt": "  "}', "p.jsonl:1: is empty"),
        ("p.jsonl", b'{"promt": "x"}', "p.jsonl:1: promt: Extra inputs"),
        ("p.jsonl", b'{"prompt": "x", "seed": -1}', "p.jsonl:1: seed: "),
        ("p.jsonl", b'{"prompt": "x", "seed": NaN}', "p.jsonl:1: seed: "),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "p.jsonl:1: contains control characters or bytes"),
        ("p.jsonl", b'{"prompt": "x"}\n\n{"prompt": "x"}', "p.jsonl:3: repeats prompt"),
    ],
)
def test_unusable_file_of_prompts_is_rejected_with_its_line(name, data, what):
    with pytest.raises(ConfigError) as error:
        list(read_prompts(data, name))
    assert str(error.value).startswith(what)
