"""The pipeline file: YAML in, a validated, topologically ordered list of stages out.

All mistakes of a file are found in one pass, each with its key path and, where there is one, the
name that was probably meant:

    pipelines/x.yaml: stages.tokens.batch_clip: unknown key (did you mean batch_clips?)
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.ids import digest_json
from videoar.core.names import NAME_HINT, is_name
from videoar.core.redact import redact
from videoar.core.types import Json
from videoar.core.yaml_file import read_mapping
from videoar.pipeline.input_url import absolute_input, input_problem, named_input
from videoar.pipeline.local_path import with_absolute_paths
from videoar.pipeline.mistakes import Mistake, SpecError, explain, shown, unknown_key
from videoar.pipeline.options import options_of
from videoar.pipeline.overrides import apply_override
from videoar.pipeline.registry import BUILTIN, Registry, stage_class
from videoar.pipeline.stage import Port, Stage, StageConfig
from videoar.pipeline.trigger import Schedule

_SCHEDULE_KEYS = tuple(Schedule.model_fields)
_TOP_KEYS = ("pipeline", "description", "only_if_new", "inputs", "stages", *_SCHEDULE_KEYS)
_STAGE_KEYS = ("stage", "from")


@dataclass(frozen=True)
class StageSpec:
    """One stage of a pipeline."""

    name: str
    type: str
    ports: Mapping[str, str]
    """Port name to the input or stage that feeds it."""
    config: StageConfig

    def without(self, absent: Container[str]) -> "StageSpec":
        """Return the stage without the ports that these inputs or stages feed."""
        ports = {port: source for port, source in self.ports.items() if source not in absent}
        return replace(self, ports=ports)


@dataclass(frozen=True)
class PipelineSpec:
    """A pipeline: inputs and stages, in an order in which they can run."""

    name: str
    source: str
    """Where the file was read, for messages."""
    inputs: Mapping[str, str]
    stages: tuple[StageSpec, ...]
    only_if_new: str | None
    """Listed input without whose new sources a run skips all stages; None: runs in any case."""
    document: Mapping[str, Any] = field(repr=False)
    """The file as data, with overrides applied and paths absolute: what a run stores and
    `resume` reads."""
    schedule: Schedule

    @property
    def digest(self) -> str:
        """Digest of the resolved document, but for when it runs and whom it tells."""
        kept = {key: value for key, value in self.document.items() if key not in _SCHEDULE_KEYS}
        return digest_json(kept)

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
        result: set[str] = set()
        for source in self.stage(name).ports.values():
            if source not in self.inputs:
                result |= {source} | self.upstream(source)
        return result

    def select(self, start: str | None, until: str | None) -> list[StageSpec]:
        """Return the stages of a run that ends with `until`, in order; None means all.

        What `start` needs is among them: a run from there on reads it.

        Raises:
            ConfigError: there is no such stage, or `start` comes after `until`.
        """
        names = {stage.name for stage in self.stages}
        if until is not None:
            names = self.upstream(until) | {until}
        if start is not None and self.stage(start).name not in names:
            raise ConfigError(f"--from {start}", f"comes after --until {until}", "swap them")
        return [stage for stage in self.stages if stage.name in names]


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
    return build_pipeline(document, str(path), overrides, registry)


def build_pipeline(
    document: dict[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    registry: Registry = BUILTIN,
) -> PipelineSpec:
    """Apply overrides to a pipeline given as data, and validate it; see `load_pipeline`."""
    for override in overrides:
        apply_override(document, override, source, registry)
    # before validation, because `document` is stored and `resume` validates it again
    _resolve_paths(document, Path.cwd(), registry)
    return parse_pipeline(document, source, registry)


def _resolve_paths(document: dict[str, Any], directory: Path, registry: Registry) -> None:
    """Make relative paths absolute, so that `resume` from another directory reads the same data."""
    inputs, stages = document.get("inputs"), document.get("stages")
    if isinstance(inputs, dict):
        for name, url in inputs.items():
            # what is wrong stays as it is: `parse_pipeline` reports it as the user wrote it
            if isinstance(url, str) and input_problem(url) is None:
                inputs[name] = absolute_input(url, directory)
    if isinstance(stages, dict):
        for name, stage in stages.items():
            type_name = stage.get("stage") if isinstance(stage, dict) else None
            if isinstance(type_name, str) and type_name in registry:
                options = options_of(stage_class(type_name, registry).config_type)
                stages[name] = with_absolute_paths(stage, options, directory)


def parse_pipeline(
    document: Mapping[str, Any], source: str, registry: Registry = BUILTIN
) -> PipelineSpec:
    """Validate a pipeline given as data; see `load_pipeline`."""
    inputs, input_mistakes = _parse_inputs(document.get("inputs"))
    drafts, stage_mistakes = _parse_stages(document.get("stages"), registry)
    mistakes = _check_head(document, inputs) + input_mistakes + stage_mistakes
    mistakes += [
        Mistake(f"stages.{name}", "is the name of an input, too (rename one)")
        for name in drafts
        if name in inputs  # both become a dataset of this name, with different contracts
    ]
    for draft in drafts.values():
        mistakes += _check_ports(draft, inputs, drafts)
        mistakes += _check_secrets(f"stages.{draft.name}", document["stages"][draft.name])
    schedule, schedule_mistakes = _parse_schedule(document)
    mistakes += schedule_mistakes + _check_trigger(schedule, inputs, drafts)
    order = _order(drafts, mistakes)
    if mistakes:
        raise SpecError(source, mistakes)
    return PipelineSpec(
        name=document["pipeline"],
        source=source,
        inputs=inputs,
        stages=tuple(drafts[name].spec() for name in order),
        only_if_new=document.get("only_if_new"),
        document=dict(document),
        schedule=schedule,
    )


def _check_secrets(path: str, value: Json) -> list[Mistake]:
    """Find texts with a password: run records, pages and MLflow would keep them."""
    if isinstance(value, Mapping):
        return [m for key, item in value.items() for m in _check_secrets(f"{path}.{key}", item)]
    if isinstance(value, list):
        return [m for i, item in enumerate(value) for m in _check_secrets(f"{path}.{i}", item)]
    if not isinstance(value, str) or redact(value) == value:
        return []
    return [Mistake(path, "contains a password or another secret (leave it to the environment)")]


def _parse_schedule(document: Mapping[str, Any]) -> tuple[Schedule, list[Mistake]]:
    raw = {key: document[key] for key in _SCHEDULE_KEYS if key in document}
    try:
        return Schedule.model_validate(raw), []
    except ValidationError as error:
        return Schedule(), explain(error, "", options_of(Schedule), raw)


def _check_trigger(
    schedule: Schedule, inputs: Mapping[str, str], stages: Container[str]
) -> list[Mistake]:
    trigger = schedule.trigger
    if trigger and (new := trigger.new_sources):
        path = "trigger.new_sources.input"
        if new.input not in inputs:
            return [Mistake(path, f"no input {new.input} ({did_you_mean(new.input, inputs)})")]
        if named_input(inputs[new.input]):
            return [Mistake(path, f"{new.input} is not listed (use new_snapshot)")]
    if trigger and (snapshot := trigger.new_snapshot) and snapshot.dataset in stages:
        what = f"{snapshot.dataset} is a stage of this pipeline, so each run would start the next"
        return [Mistake("trigger.new_snapshot.dataset", what)]
    return []


def _check_head(document: Mapping[str, Any], inputs: Mapping[str, str]) -> list[Mistake]:
    unknown = [key for key in document if key not in _TOP_KEYS]
    mistakes = [Mistake(key, unknown_key(key, _TOP_KEYS)) for key in unknown]
    if "pipeline" not in document:
        mistakes.append(Mistake("pipeline", "missing (give the pipeline a name)"))
    else:
        mistakes += _check_name("pipeline", document["pipeline"])
    description = document.get("description", "")
    if not isinstance(description, str):
        mistakes.append(Mistake("description", f"must be text, not {shown(description)}"))
    if (name := document.get("only_if_new")) is not None:
        listed = [name for name, url in inputs.items() if not named_input(url)]
        if name not in listed:
            text = f"{shown(name)} is no input that lists files ({did_you_mean(str(name), listed)})"
            mistakes.append(Mistake("only_if_new", text))
    return mistakes


def _check_name(path: str, name: Json) -> list[Mistake]:
    if isinstance(name, str) and is_name(name):
        return []
    return [Mistake(path, f"{shown(name)} cannot be a name ({NAME_HINT})")]


def _parse_inputs(raw: Json) -> tuple[dict[str, str], list[Mistake]]:
    if not isinstance(raw, dict):
        what = "missing" if raw is None else f"must be a mapping, not {shown(raw)}"
        return {}, [Mistake("inputs", f"{what} (map names to folders or URLs: videos: /data)")]
    mistakes = []
    for name, url in raw.items():
        path = f"inputs.{name}"
        mistakes += _check_name(path, name)
        if not isinstance(url, str):
            mistakes.append(Mistake(path, f"must be a folder or URL as text, not {shown(url)}"))
        elif problem := input_problem(url):
            mistakes.append(Mistake(path, f"{problem[0]} ({problem[1]})"))
    # with the wrong ones: otherwise each port that names one would be reported, too
    return {name: str(url) for name, url in raw.items()}, mistakes


# Contents are read first and connected afterwards: ports can be checked against stages that come
# later in the file, and against stages whose options are wrong.
@dataclass(frozen=True)
class _Draft:
    """A stage as far as it could be read, so that one mistake does not hide others."""

    name: str
    stage: type[Stage[Any]] | None
    """None where the type is unknown."""
    ports: Mapping[str, str]
    type_name: str = ""
    config: StageConfig | None = None
    """None where the options have mistakes."""

    def spec(self) -> StageSpec:
        """Return the stage of a pipeline without mistakes."""
        if self.config is None:
            raise ValueError(f"stage {self.name} has mistakes")
        return StageSpec(self.name, self.type_name, self.ports, self.config)


def _parse_stages(raw: Json, registry: Registry) -> tuple[dict[str, _Draft], list[Mistake]]:
    if not isinstance(raw, dict) or not raw:
        what = "missing" if not raw else f"must be a mapping, not {shown(raw)}"
        return {}, [Mistake("stages", f"{what} (map at least one name to a stage)")]
    drafts, mistakes = {}, []
    for name, content in raw.items():
        drafts[name], of_stage = _parse_stage(name, content, registry)
        mistakes += _check_name(f"stages.{name}", name) + of_stage
    return drafts, mistakes


def _parse_stage(name: str, raw: Json, registry: Registry) -> tuple[_Draft, list[Mistake]]:
    path = f"stages.{name}"
    if not isinstance(raw, dict):
        text = f"must be a mapping, not {shown(raw)} (start with `stage: <type>`)"
        return _Draft(name, None, {}), [Mistake(path, text)]
    ports, mistakes = _parse_ports(f"{path}.from", raw.get("from", {}))
    type_name = raw.get("stage")
    if not isinstance(type_name, str) or type_name not in registry:
        mistakes.append(Mistake(f"{path}.stage", _wrong_type(type_name, registry)))
        return _Draft(name, None, ports), mistakes
    cls = stage_class(type_name, registry)
    options = {key: value for key, value in raw.items() if key not in _STAGE_KEYS}
    try:
        config = cls.config_type.model_validate(options)
    except ValidationError as error:
        mistakes += explain(error, path, options_of(cls.config_type), options, _STAGE_KEYS)
        config = None
    return _Draft(name, cls, ports, type_name, config), mistakes


def _wrong_type(type_name: Json, registry: Registry) -> str:
    if type_name is None:
        return f"missing (one of {', '.join(registry)})"
    if not isinstance(type_name, str):
        return f"must be the type of a stage, not {shown(type_name)}"
    return f"unknown stage type {shown(type_name)} ({did_you_mean(type_name, registry)})"


def _parse_ports(path: str, raw: Json) -> tuple[dict[str, str], list[Mistake]]:
    if not isinstance(raw, dict):
        text = f"must be a mapping, not {shown(raw)} (map ports to inputs or stages)"
        return {}, [Mistake(path, text)]
    # one that is no text is reported as an unknown name
    return {port: s if isinstance(s, str) else shown(s) for port, s in raw.items()}, []


def _check_ports(
    draft: _Draft, inputs: Mapping[str, str], drafts: Mapping[str, _Draft]
) -> list[Mistake]:
    path = f"stages.{draft.name}.from"
    mistakes = []
    for port, source in draft.ports.items():
        if source not in inputs and source not in drafts:
            hint = did_you_mean(source, {*inputs, *drafts})
            mistakes.append(Mistake(f"{path}.{port}", f"no input or stage {source} ({hint})"))
    # which ports an unknown type has cannot be checked; its misspelt type is a mistake already
    if draft.stage is None:
        return mistakes
    consumes = draft.stage.consumes
    for port, source in draft.ports.items():
        declared = draft.stage.port(port)
        if declared is None:
            text = f"unknown port ({did_you_mean(port, consumes)})"
            mistakes.append(Mistake(f"{path}.{port}", text))
            continue
        # an input's contract is known only when it is resolved: see `check_contracts`
        other = drafts[source].stage if source in drafts else None
        if other is not None and other.produces != declared.contract:
            text = f"needs {declared.contract}, but {source} makes {other.produces}"
            mistakes.append(Mistake(f"{path}.{port}", text))
    return mistakes + _missing_ports(draft, path, consumes)


def _missing_ports(draft: _Draft, path: str, consumes: Mapping[str, Port]) -> list[Mistake]:
    reasons = {
        port: f"needs a snapshot of {wanted.contract}"
        for port, wanted in consumes.items()
        if not wanted.optional
    }
    if draft.config is not None:
        reasons |= draft.config.needs()
    return [
        Mistake(f"{path}.{port}", f"missing port ({reason})")
        for port, reason in reasons.items()
        if port not in draft.ports
    ]


def _order(drafts: Mapping[str, _Draft], mistakes: list[Mistake]) -> list[str]:
    graph = {n: [s for s in draft.ports.values() if s in drafts] for n, draft in drafts.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        mistakes.append(Mistake("stages", f"cycle: {cycle} (feed one of them from elsewhere)"))
        return []
