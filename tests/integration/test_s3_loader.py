"""The loader on a real S3 server: the batches of a local store, by row groups."""

import pytest

from tests.support.numbered_tokens import assert_equal, commit_to, contents, token_table
from videoar.storage import open_store
from videoar.training import TokenLoader

pytestmark = pytest.mark.s3


def test_loader_batches_from_s3_equal_those_from_a_folder(s3_server, tmp_path):
    tables = [token_table(start, 10) for start in range(0, 120, 10)]
    tables.append(token_table(120, 6, (2, 8, 64, 128)))  # rows that are fetched one by one
    far = commit_to(open_store(s3_server.new_url(), endpoint=s3_server.endpoint), *tables)
    near = commit_to(open_store(tmp_path.as_uri()), *tables)
    assert far.digest == near.digest
    for world_size in (1, 2):
        for rank in range(world_size):
            share = (4, 7, rank, world_size)
            assert_equal(contents(TokenLoader(far, *share)), contents(TokenLoader(near, *share)))
