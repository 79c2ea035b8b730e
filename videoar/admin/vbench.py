"""VBench: its prompts as a snapshot to generate from."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from videoar import __version__
from videoar.contracts.contract import load_contract
from videoar.contracts.names import PROMPTS
from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json
from videoar.core.types import Provenance
from videoar.evaluation import vbench_prompts
from videoar.storage.store import Store

_DATASET = "vbench_prompts"


def plan(
    store: Store,
    *,
    samples: int = vbench_prompts.NUM_SAMPLES,
    flickering: int = vbench_prompts.NUM_SAMPLES,
    seed: int = 0,
    rewritten: Path | None = None,
) -> dict[str, Any]:
    """Commit the samples that VBench needs as a snapshot of `prompts@1`.

    The same call finds the same snapshot. Arguments as of `vbench_prompts.plan`.

    Returns:
        `{snapshot, entries, prompts, samples, rewritten}`.

    Raises:
        ConfigError: fewer samples than VBench evaluates, or an unusable file of prompts.
    """
    if samples < vbench_prompts.NUM_SAMPLES:
        what = f"VBench evaluates {vbench_prompts.NUM_SAMPLES} samples of a prompt"
        raise ConfigError(f"--samples {samples}", what)
    rows = list(vbench_prompts.plan(samples, flickering, seed, rewritten))
    fingerprint = digest_json({"vbench": rows})
    dataset = store.dataset(_DATASET, PROMPTS)
    snapshot = dataset.find(fingerprint)
    if snapshot is None:
        provenance = Provenance(
            run_id="vbench-plan", pipeline="vbench plan", stage="", fingerprint=fingerprint,
            code_version=__version__,
        )  # fmt: skip
        table = pa.Table.from_pylist(rows, load_contract(PROMPTS).arrow_schema)
        snapshot = dataset.commit([dataset.write(table)], provenance, {})
    return {
        "snapshot": snapshot.id,
        "entries": len(vbench_prompts.entries()),
        "prompts": len(vbench_prompts.prompts()),
        "samples": len(rows),
        "rewritten": sum(row["prompt"] != row["prompt_id"] for row in rows),
    }
