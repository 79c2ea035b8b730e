"""The code part of a fingerprint: which modules it covers."""

from videoar.pipeline.fingerprint import code_closure


def write_package(root, modules):
    for name, text in modules.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_code_closure_leaves_out_packages_below_stages_by_whole_name(tmp_path):
    write_package(
        tmp_path,
        {
            "stages/blur.py": "import videoar.storage.reader, videoar.storage_x.codec\n",
            "storage/reader.py": "A = 1\n",
            "storage_x/__init__.py": "",
            "storage_x/codec.py": "B = 1\n",
        },
    )
    closure = code_closure("videoar.stages.blur", tmp_path)
    assert set(closure) == {"videoar.stages.blur", "videoar.storage_x.codec"}


def test_code_closure_ignores_docstrings_and_comments(tmp_path):
    write_package(tmp_path / "a", {"stages/blur.py": "def f():\n    return 1\n"})
    write_package(
        tmp_path / "b", {"stages/blur.py": 'def f():\n    """Text."""\n    return 1  # c\n'}
    )
    write_package(tmp_path / "c", {"stages/blur.py": "def f():\n    return 2\n"})
    a, b, c = (code_closure("videoar.stages.blur", tmp_path / name) for name in "abc")
    assert a == b != c
