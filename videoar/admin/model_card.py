"""The card of a model: what it was made of, how, and what was measured.

As a file it is Markdown with the same values as YAML front matter, which model hubs and
`videoar.load` read. It has snapshot ids and digests, but no address, path or machine name.
"""

from collections.abc import Iterable
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from videoar.core.errors import ConfigError, ContractError
from videoar.core.ids import SHORT_DIGEST
from videoar.core.types import Stored
from videoar.core.yaml_file import parse_mapping

_FENCE = "---\n"


class _Dumper(yaml.SafeDumper):
    """Quotes text that begins with no letter: YAML 1.2 reads 1e3 as a number, PyYAML as text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", data, style=None if data[:1].isalpha() else "'"
        )


_Dumper.add_representer(str, _Dumper.represent_str)


class Network(Stored):
    """One of the two networks."""

    snapshot: str
    digest: str
    """Over names and contents of its files, as `models@1` has it."""
    num_parameters: int
    step: int
    """Optimizer steps taken."""
    training: dict[str, Any]
    """Options of the stage that trained it; empty if its run is not recorded in the store."""
    code: str
    """Digest of the code that trained it, "" likewise."""
    version: str
    """Version of videoar that trained it."""


class Data(Stored):
    """A snapshot that the model was made of."""

    snapshot: str
    contract: str
    rows: int


class Sources(Stored):
    """The source videos."""

    videos: int
    forgotten: int
    """Of them, those that were taken down since."""
    licences: dict[str, int]
    """Number of videos by licence."""


class TextEncoder(Stored):
    """The frozen text encoder, which no export contains."""

    name: str
    digest: str


class Score(Stored):
    """A metric of the score card."""

    value: float
    ci_low: float | None
    ci_high: float | None
    num_samples: int


class ModelCard(Stored):
    """What is known about a model."""

    library_name: Literal["videoar"] = "videoar"
    pipeline_tag: Literal["text-to-video"] = "text-to-video"
    card_version: Literal[1] = 1
    """Of this list of fields. Raise it when an older version would misread a card."""
    model: Network
    tokenizer: Network
    text_encoder: TextEncoder | None = None
    """None: it is part of the model."""
    size_px: tuple[int, int]
    """Height and width of its videos."""
    rate_fps: float | None
    """Frame rate of most clips that it was trained on; None if all of them were withdrawn."""
    num_frames: int | None
    """Frames of the longest one in the last phase, None likewise."""
    caption_template: str = "{caption}"
    """What a prompt is put into; see `PromptTemplates`."""
    class_template: str = "Generate a video of {label}"
    """What the name of a class is put into, likewise."""
    labels: list[str] | None = None
    """Classes of the clips that it was trained on; None if there are very many, or not known."""
    sampler: dict[str, Any]
    """Guidance and temperature of the samples that were scored; empty if none were."""
    data: list[Data]
    sources: Sources
    metrics: dict[str, float]
    """Final training metrics."""
    scores: dict[str, Score]
    gate: dict[str, Any] | None
    """The newest decision on this model, None if there is none."""
    checksums: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what is exported."""


def to_markdown(card: ModelCard) -> str:
    """Return the text of a card's file."""
    front = yaml.dump(card.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=100)
    return f"{_FENCE}{front}{_FENCE}{_prose(card)}"


def from_markdown(text: str, where: str) -> ModelCard:
    """Read a card from the text of its file.

    Raises:
        ContractError: it is no card, or one of a newer version.
    """
    hint = "write it again with videoar export"
    start, fence, rest = text.partition(_FENCE)
    front, end, _ = rest.partition(f"\n{_FENCE}")
    if start or not fence or not end:
        raise ContractError(where, "has no YAML front matter", hint)
    try:
        return ModelCard.model_validate(parse_mapping(front.encode(), where, hint))
    except ConfigError as error:
        raise ContractError(error.where, error.what, error.hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ContractError(where, what, hint) from error


def _prose(card: ModelCard) -> str:
    model, sources, (height, width) = card.model, card.sources, card.size_px
    millions, of_tokenizer = (net.num_parameters / 1e6 for net in (model, card.tokenizer))
    frames = card.num_frames or "an unknown number of"
    rate = f"{card.rate_fps:g}" if card.rate_fps else "an unknown number of"
    encoder = f', text_encoder="FOLDER OF {card.text_encoder.name}"' if card.text_encoder else ""
    data = [(data.snapshot, data.contract, data.rows) for data in card.data]
    code = model.code[:SHORT_DIGEST] or "not recorded"
    return f"""
# {model.snapshot}

A VideoAR text-to-video model (arXiv 2601.05966) of {millions:.1f} M parameters with a tokenizer of
{of_tokenizer:.1f} M, for videos of {height} x {width} px. It was trained on clips of up to {frames}
frames at {rate} frames per second.

```python
import videoar

videoar.load("FOLDER"{encoder}).sample("a prompt", seconds=2, seed=0).save("x.mp4")
```

## Data

{_table(("snapshot", "contract", "rows"), data)}

{sources.videos} source videos, {sources.forgotten} of them taken down since:

{_table(("licence", "videos"), sources.licences.items())}

## Results

{_metrics(card)}

{_gate(card.gate)}

## Training

{model.step} optimizer steps by videoar {model.version}, code digest {code}. All options are in the
front matter of this file.

## Intended use

Research on video generation, for prompts and videos like those of the training data. There is no
safety filter, nothing beyond the results above was evaluated, and samples may resemble training
clips. What the weights may be used for depends on the licences of the source videos; this card
grants nothing.

## Files

{_table(("file", "SHA-256"), card.checksums.items())}
"""


def _metrics(card: ModelCard) -> str:
    rows: list[tuple[object, ...]] = [
        (name, f"{score.value:.4g}", _interval(score), score.num_samples)
        for name, score in card.scores.items()
    ]
    # those of single frames and scales are in the front matter only
    final = ((name, value) for name, value in card.metrics.items() if name.count("/") < 2)
    rows += [(f"training: {name}", f"{value:.4g}", "", "") for name, value in final]
    return _table(("metric", "value", "95 % interval", "samples"), rows)


def _interval(score: Score) -> str:
    if score.ci_low is None or score.ci_high is None:
        return ""
    return f"{score.ci_low:.4g} to {score.ci_high:.4g}"


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return "No gate has decided on this model."
    verdict = "passed" if gate["passed"] else "failed"
    rules = [(r["name"], r["value"], "pass" if r["passed"] else "FAIL") for r in gate["rules"]]
    head = f"It {verdict} its gate for `{gate['ref']}` (decision `{gate['decision']}`)."
    return f"{head}\n\n{_table(('rule', 'value', 'result'), rules)}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    """Return a value as one cell; licences and captions come from the users' files."""
    return " ".join(str(value).replace("|", "\\|").split())
