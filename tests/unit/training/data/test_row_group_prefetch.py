"""Row groups are fetched once per access: the example of the module, and a group used twice."""

import numpy as np

from videoar.training.data.row_group_prefetch import row_group_accesses


def test_example_of_the_module_docstring_holds():
    row_group_n = np.array([4, 4, 4, 4, 5, 0, 5, 0, 5, 0, 5, 0])
    access_n, row_group_a, first_a = row_group_accesses(row_group_n, np.arange(12) // 2)
    a, b, c = (access_n[first] for first in (0, 4, 5))
    assert access_n.tolist() == [a, a, a, a, b, c, b, c, b, c, b, c]
    assert row_group_a[np.argsort(first_a)].tolist() == [4, 5, 0]


def test_row_group_used_again_much_later_is_another_access():
    access_n, row_group_a, first_a = row_group_accesses(np.array([7, 7, 7]), np.array([0, 64, 129]))
    assert access_n.tolist() == [0, 0, 1]
    assert row_group_a.tolist() == [7, 7]
    assert first_a.tolist() == [0, 2]
