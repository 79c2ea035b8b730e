"""What the stages of one execution share."""

from collections.abc import Mapping
from dataclasses import dataclass

from videoar import __version__
from videoar.core.types import Provenance
from videoar.pipeline.fingerprint import FingerprintParts
from videoar.pipeline.registry import Registry
from videoar.records.run import StageRun
from videoar.records.run_log import RunLog
from videoar.runner.supervisor import Supervisor
from videoar.storage.store import Store


@dataclass(frozen=True)
class RunContext:
    """The run that a stage belongs to. `stages` is live: a display may read it at any time."""

    store: Store
    run_id: str
    pipeline: str
    registry: Registry
    log: RunLog
    supervisor: Supervisor
    stages: dict[str, StageRun]

    def update(self, name: str, **changes: object) -> None:
        """Change the state of a stage; with another status, it waits for nothing."""
        if "status" in changes:
            changes = {"waiting": "", **changes}
        self.stages[name] = self.stages[name].model_copy(update=changes)

    def record(self, name: str, fingerprint_parts: FingerprintParts | None = None) -> None:
        """Record the state of a stage."""
        self.log.stage(self.stages[name], fingerprint_parts)

    def provenance(self, name: str, fingerprint: str, parents: Mapping[str, str]) -> Provenance:
        """Return what a commit of this run says of its origin."""
        return Provenance(
            run_id=self.run_id,
            pipeline=self.pipeline,
            stage=name,
            fingerprint=fingerprint,
            code_version=__version__,
            parents=dict(parents),
        )
