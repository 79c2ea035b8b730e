"""A rank without an engine, and commits of single tables, for tests of loop stages."""

from videoar.core.types import Provenance


class MemoryRank:
    """A single rank that keeps its checkpoints in memory."""

    index, world_size = 0, 1

    def __init__(self, scratch):
        scratch.mkdir(exist_ok=True)
        self.scratch, self.saved, self.steps = scratch, {}, []

    def report(self, step, total, metrics, curve=()):
        self.steps.append(step)

    def is_preempted(self):
        return False

    def save_checkpoint(self, step, folder, group=""):
        self.saved[step] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def load_checkpoint(self, into):
        for name, data in self.saved.get(max(self.saved, default=0), {}).items():
            (into / name).write_bytes(data)
        return max(self.saved, default=None)


def commit(store, dataset, contract, table, **parents):
    """Commit a table as the only file of a dataset; return the snapshot."""
    return commit_all(store, dataset, contract, [table], **parents)


def commit_all(store, dataset, contract, tables, **parents):
    """Commit tables as the files of a dataset; return the snapshot."""
    provenance = Provenance(
        run_id="r", pipeline="p", stage=dataset, fingerprint=dataset, code_version="0",
        parents=parents,
    )  # fmt: skip
    target = store.dataset(dataset, contract)
    return target.commit([target.write(table) for table in tables], provenance, {})
