"""A commit of many files has in the log what an earlier one does not have."""

import json
import random

import pytest

from videoar.core.errors import DamagedError
from videoar.core.ids import sha256_hex
from videoar.core.types import Commit, FileRef, Provenance
from videoar.storage.commit_files import base_of, bases_of_later, decode, encode
from videoar.storage.delta_log import _commit_of

MADE = Provenance(run_id="r", pipeline="p", stage="s", fingerprint="f", code_version="0")


def file(number):
    sha256 = sha256_hex(b"%d" % number)
    return FileRef(key=f"tables/s/data/{sha256[:2]}/{sha256}.parquet", sha256=sha256, size_bytes=1)


def commit(version, files):
    return Commit(
        snapshot="s:0", digest="0", dataset="s", contract="clips@1", version=version,
        files=tuple(files), provenance=MADE,
    )  # fmt: skip


def test_commits_are_read_as_written_and_grow_by_what_changes():
    chance, files = random.Random(0), [file(n) for n in range(400)]
    commits, records = {}, {}
    for version in range(1, 100):
        files = [f for f in files if chance.random() > 0.002]
        files.insert(chance.randrange(len(files)), file(1000 + version))
        if version % 40 == 0:
            chance.shuffle(files)  # nothing to refer to
        commits[version] = commit(version, files)
        records[version] = json.loads(json.dumps(
            encode(commits[version], lambda base: commits[base].files)
        ))  # fmt: skip

    def read(version):
        return decode(records[version], lambda base: read(base).files)

    assert all(read(version) == made for version, made in commits.items())
    sizes = [len(json.dumps(record)) for record in records.values()]
    assert sum(sizes) < 0.1 * 99 * sizes[0]


def test_base_is_kept_by_a_reader_until_no_later_version_has_it():
    for version in range(1, 300):
        for later in range(version + 1, 300):
            assert base_of(later) > version or base_of(later) in bases_of_later(version)


@pytest.mark.parametrize("base", [None, ()])
def test_commit_without_a_base_or_of_few_files_has_all(base):
    assert "base" not in encode(commit(3, [file(1)] * 70), lambda _: base)
    assert "base" not in encode(commit(3, [file(1)]), lambda _: (file(1),))


def test_lost_base_is_damage():
    records = encode(commit(3, map(file, range(90))), lambda _: tuple(map(file, range(80))))
    assert records["edits"][0] == [0, 80]
    with pytest.raises(DamagedError, match="k: damaged: no commit"):
        _commit_of("k", records, {}.__getitem__)
