import pytest
from pydantic import ValidationError

from videoar.training.prompts import PromptTemplates, plain_words


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
