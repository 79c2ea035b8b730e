"""The pipeline file: YAML in, a validated, topologically ordered list of stages out.

All mistakes of a file are found in one pass, each with its key path and, where there is one, the
name that was probably meant:

    pipelines/x.yaml: stages.tokens.batch_clip: unknown key (did you mean batch_clips?)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.ids import digest_json
from videoar.core.yaml_file import read_mapping
from videoar.pipeline.overrides import apply_override
from videoar.pipeline.registry import BUILTIN, Registry, stage_class
from videoar.pipeline.stage import StageConfig

_SHOWN_CHARS = 60
_TOP_KEYS = ("pipeline", "description", "inputs", "stages")


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a pipeline file."""

    path: str
    message: str


class SpecError(ConfigError):
    """A pipeline file that cannot be used; `mistakes` has all of them."""

    def __init__(self, where: str, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        lines = [f"{m.path}: {m.message}" if m.path else m.message for m in mistakes]
        super().__init__(where, f"\n{where}: ".join(lines))
        self.args = (where, self.mistakes)


@dataclass(frozen=True)
class StageSpec:
    """One stage of a pipeline."""

    name: str
    type: str
    ports: Mapping[str, str]
    """Port name to the input or stage that feeds it."""
    config: StageConfig


@dataclass(frozen=True)
class PipelineSpec:
    """A pipeline: inputs and stages, in an order in which they can run."""

    name: str
    source: str
    """Where the file was read, for messages."""
    inputs: Mapping[str, str]
    stages: tuple[StageSpec, ...]
    document: Mapping[str, Any] = field(repr=False)
    """The file as data with the overrides applied: what a run stores and `resume` reads."""

    @property
    def digest(self) -> str:
        """Digest of the resolved document."""
        return digest_json(dict(self.document))

    def stage(self, name: str) -> StageSpec:
        """Return the stage of this name.

        Raises:
            ConfigError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        hint = did_you_mean(name, [stage.name for stage in self.stages])
        raise ConfigError(self.source, f"no stage {name}", hint)

    def upstream(self, name: str) -> set[str]:
        """Return the names of all stages that a stage depends on."""
        found: set[str] = set()
        for source in self.stage(name).ports.values():
            if source not in self.inputs:
                found |= {source} | self.upstream(source)
        return found


def load_pipeline(
    path: Path, overrides: Sequence[str] = (), registry: Registry = BUILTIN
) -> PipelineSpec:
    """Read and validate a pipeline file.

    Args:
        path: the YAML file.
        overrides: `a.b=value` strings, applied before validation; see `apply_override`.
        registry: known stages.

    Raises:
        ConfigError: the file cannot be read or is not YAML.
        SpecError: it has mistakes; all of them are in the error.
    """
    document = read_mapping(path, "start with `pipeline: <name>`")
    for override in overrides:
        apply_override(document, override, str(path), registry)
    return parse_pipeline(document, str(path), registry)


def parse_pipeline(
    document: Mapping[str, Any], source: str, registry: Registry = BUILTIN
) -> PipelineSpec:
    """Validate a pipeline given as data; see `load_pipeline`."""
    mistakes = [
        Mistake(str(key), f"unknown key ({did_you_mean(str(key), list(_TOP_KEYS))})")
        for key in document
        if key not in _TOP_KEYS
    ]
    name, raw_stages = document.get("pipeline"), document.get("stages")
    inputs: Any = document.get("inputs")
    if not isinstance(name, str) or not name:
        mistakes.append(Mistake("pipeline", "missing (give the pipeline a name)"))
    if not _is_mapping_of(inputs, str):
        mistakes.append(Mistake("inputs", "must map names to folders or URLs"))
        inputs = {}
    if not _is_mapping_of(raw_stages, dict) or not raw_stages:
        mistakes.append(Mistake("stages", "must map stage names to mappings, at least one"))
        raise SpecError(source, mistakes)
    stages = {key: _parse_stage(key, raw, registry, mistakes) for key, raw in raw_stages.items()}
    good = {key: stage for key, stage in stages.items() if stage is not None}
    for stage in good.values():
        mistakes += _check_ports(stage, inputs, stages, registry)
    order = _order(good, mistakes)
    if mistakes:
        raise SpecError(source, mistakes)
    return PipelineSpec(
        name=str(name),
        source=source,
        inputs=dict(inputs),
        stages=tuple(good[key] for key in order),
        document=dict(document),
    )


def _is_mapping_of(value: Any, kind: type) -> bool:  # noqa: ANN401 - any YAML value
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, kind) for k, v in value.items()
    )


def _parse_stage(
    name: str, raw: Mapping[str, Any], registry: Registry, mistakes: list[Mistake]
) -> StageSpec | None:
    path = f"stages.{name}"
    type_name = raw.get("stage")
    if not isinstance(type_name, str):
        mistakes.append(Mistake(f"{path}.stage", f"missing (one of {', '.join(registry)})"))
        return None
    if type_name not in registry:
        hint = did_you_mean(type_name, list(registry))
        mistakes.append(Mistake(f"{path}.stage", f"unknown stage type {type_name} ({hint})"))
        return None
    ports = raw.get("from", {})
    if not _is_mapping_of(ports, str):
        mistakes.append(Mistake(f"{path}.from", "must map ports to inputs or stages"))
        ports = {}
    options = {key: value for key, value in raw.items() if key not in ("stage", "from")}
    config_type = stage_class(type_name, registry).config_type
    try:
        config = config_type.model_validate(options)
    except ValidationError as error:
        mistakes += [_explain(path, detail, config_type) for detail in error.errors()]
        return None
    return StageSpec(name=name, type=type_name, ports=dict(ports), config=config)


def _explain(path: str, detail: Any, config_type: type[StageConfig]) -> Mistake:  # noqa: ANN401 - pydantic's ErrorDetails
    where = ".".join([path, *map(str, detail["loc"])])
    if detail["type"] == "extra_forbidden":
        known = list(config_type.model_fields) if len(detail["loc"]) == 1 else []
        hint = f" ({did_you_mean(str(detail['loc'][-1]), known)})" if known else ""
        return Mistake(where, f"unknown key{hint}")
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail["input"])
    if detail["type"] not in ("missing", "value_error") and len(shown) <= _SHOWN_CHARS:
        message += f", not {shown}"
    return Mistake(where, message[0].lower() + message[1:])


def _check_ports(
    stage: StageSpec,
    inputs: Mapping[str, str],
    stages: Mapping[str, StageSpec | None],
    registry: Registry,
) -> list[Mistake]:
    path = f"stages.{stage.name}.from"
    consumes = stage_class(stage.type, registry).consumes
    found = [
        Mistake(f"{path}.{port}", f"unknown port ({did_you_mean(port, list(consumes))})")
        for port in stage.ports
        if port not in consumes
    ]
    missing = {port: wanted for port, wanted in consumes.items() if port not in stage.ports}
    found += [
        Mistake(f"{path}.{port}", f"missing port (needs a snapshot of {wanted.contract})")
        for port, wanted in missing.items()
        if not wanted.optional
    ]
    found += [
        Mistake(f"{path}.{port}", f"missing port ({why})")
        for port, why in stage.config.needs().items()
        if port in missing
    ]
    for port, source in stage.ports.items():
        if source in inputs:
            continue  # an input's contract is known only when it is resolved
        if source not in stages:
            hint = did_you_mean(source, [*inputs, *stages])
            found.append(Mistake(f"{path}.{port}", f"no input or stage {source} ({hint})"))
        elif (other := stages[source]) and port in consumes:
            made = stage_class(other.type, registry).produces
            if made != consumes[port].contract:
                text = f"needs {consumes[port].contract}, but {source} makes {made}"
                found.append(Mistake(f"{path}.{port}", text))
    return found


def _order(stages: Mapping[str, StageSpec], mistakes: list[Mistake]) -> list[str]:
    graph = {
        name: [s for s in stage.ports.values() if s in stages] for name, stage in stages.items()
    }
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        mistakes.append(Mistake("stages", f"cycle: {' -> '.join(reversed(error.args[1]))}"))
        return []
