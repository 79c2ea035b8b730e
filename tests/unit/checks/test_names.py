"""The check for replaced names and phrases."""

from tests.checks.names import old_names, old_phrases


def test_old_definitions_found_in_every_form():
    source = (
        "class Painter: ...\n"
        "def f(odds): ...\n"
        "for numbered in (): ...\n"
        "import videoar.api as take_down\n"
        "self.grey = 1\n"
    )
    lines = [problem.split(":")[1] for problem in old_names("videoar/media/x.py", source)]
    assert sorted(lines) == ["1", "2", "3", "4", "5"]


def test_name_limited_to_a_package_is_fine_elsewhere():
    assert list(old_names("videoar/pipeline/x.py", "class Task: ...\n"))
    assert not list(old_names("videoar/media/x.py", "class Task: ...\n"))


def test_use_of_a_name_is_no_definition():
    assert not list(old_names("videoar/media/x.py", "print(numbered)\n"))


def test_old_phrase_found_with_its_line():
    assert list(old_phrases("a.md", "x\nthe files on their way\n")) == [
        "a.md:2: 'on their way': write: in flight"
    ]
