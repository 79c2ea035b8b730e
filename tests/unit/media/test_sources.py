"""Listing of inputs: a row per file, labels and captions, errors with the file."""

import hashlib
import os

import pyarrow as pa
import pytest

from videoar.core.errors import ConfigError, MediaError
from videoar.media.fetch import fetch
from videoar.media.process import Limits
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan
from videoar.media.sources import list_sources, read_input

MP4 = b"\0\0\0\x18ftypisom"


def rows(folder):
    return {row["name"]: row for row in pa.concat_tables(list_sources(str(folder))).to_pylist()}


def test_every_file_has_a_row_for_any_name_or_kind(tmp_path):
    names = ["-dash.mp4", "a b&(1).MP4", "vid\u00e9o.mp4", "n" * 240 + ".mp4"]
    names += ["new\nline.mp4", "none"]
    for name in names:
        (tmp_path / name).write_bytes(MP4 + name.encode())
    (tmp_path / os.fsdecode(b"raw\xff.mp4")).write_bytes(MP4)
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "lost.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    for hidden in (".hidden", "labels.csv", "manifest.csv"):
        (tmp_path / hidden).write_text("file,label\n")
    result = pa.concat_tables(list_sources(str(tmp_path))).to_pylist()
    expected = {*names, "./raw\\xff.mp4", "dir.mp4", "lost.mp4", "pipe.mp4"}
    assert {row["name"] for row in result} == expected
    assert [row["uri"] for row in result] == sorted(row["uri"] for row in result)
    for row in result:
        (tmp_path / ".into").mkdir()
        path = tmp_path / ".into" / "source"
        if row["size_bytes"]:
            *_, last = fetch(row["uri"], tmp_path / ".into")
            assert path.read_bytes().startswith(MP4)
            assert last.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            with pytest.raises(MediaError) as error:
                list(fetch(row["uri"], tmp_path / ".into"))
            assert error.value.code == "IO_PERMANENT"
        path.unlink()
        (tmp_path / ".into").rmdir()


def test_labels_csv_folder_names_and_text_files_give_labels(tmp_path):
    (tmp_path / "Some_Class").mkdir()
    (tmp_path / "Some_Class" / "a.mp4").write_bytes(MP4)
    (tmp_path / "b.mp4").write_bytes(MP4)
    (tmp_path / "b.txt").write_text("a red ball\nrolls\n")
    (tmp_path / "b2.txt").write_text("no video of this name")
    (tmp_path / "c.mp4").write_bytes(MP4)
    (tmp_path / "c.txt").write_bytes(MP4 + bytes(range(256)))
    result = rows(tmp_path)
    assert set(result) == {"Some_Class/a.mp4", "b.mp4", "b2.txt", "c.mp4", "c.txt"}
    assert result["Some_Class/a.mp4"]["label"] == "Some_Class"
    assert result["Some_Class/a.mp4"]["caption"] == "Some Class"
    assert (result["b.mp4"]["caption"], result["b.mp4"]["caption_source"]) == (
        "a red ball rolls",
        "sidecar",
    )
    (tmp_path / "labels.csv").write_text(
        "file,label,label_text,split,group,source\nSome_Class/a.mp4,x,an x,val,g1,somewhere\n"
    )
    row = rows(tmp_path)["Some_Class/a.mp4"]
    expected = {
        "label": "x",
        "caption": "an x",
        "split": "val",
        "group": "g1",
        "origin": "somewhere",
    }
    assert {key: row[key] for key in expected} == expected


def test_text_that_links_outside_the_input_is_not_read(tmp_path, caplog):
    (tmp_path / "secret").write_text("root:x:0:0\n")
    (tmp_path / "film").write_bytes(MP4)
    folder = tmp_path / "in"
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "words").write_text("a red ball\n")
    for name in "abc":
        (folder / f"{name}.mp4").symlink_to(tmp_path / "film")  # a video may be anywhere
    (folder / "a.txt").symlink_to(tmp_path / "secret")
    (folder / "b.txt").symlink_to("texts/words")
    (folder / "over").symlink_to(tmp_path)
    (folder / "c.txt").symlink_to("over/secret")
    (tmp_path / "link").symlink_to(folder)  # the input itself may be a link
    for top in (folder, tmp_path / "link"):
        caplog.clear()
        result = rows(top)
        captions = {name: row["caption"] for name, row in result.items() if row["caption"]}
        assert captions == {"b.mp4": "a red ball", "texts/words": "texts"}
        assert {"a.txt", "c.txt"} < set(result)  # listed: ingest rejects them
        assert f"{top / 'a.txt'}: is a link to a file outside the input folder" in caplog.text
        assert "2 such texts" in caplog.text
        assert f"{top / 'over'}: links to a folder above the input; not followed" in caplog.text
    (folder / "labels.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"labels\.csv: is a link to a file outside the input"):
        rows(folder)
    (folder / "labels.csv").unlink()
    (folder / "texts" / "all").write_text("file,label\na.mp4,ball\n")
    (folder / "labels.csv").symlink_to("texts/all")
    assert rows(folder)["a.mp4"]["label"] == "ball"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("file,licence,origin\na.mp4,CC0,an archive\n", {"licence": "CC0", "origin": "an archive"}),
        ("file,license,source\na.mp4,CC0,an archive\n", {"licence": "CC0", "origin": "an archive"}),
        ("file,caption\na.mp4,a ball\n", {"caption": "a ball"}),
        ('file, label\n\n"a.mp4", "x, y"\n,\n', {"label": "x, y"}),
        ("\ufeffFile,Split\r\na.mp4,Train\r\n", {"split": "train", "label": None}),
        ("file;label\na.mp4;b,c\n", {"label": "b,c"}),
        ("\n\nfile\tlabel\na.mp4\tb;c\n", {"label": "b;c"}),
        ("file,label_text\n./a.mp4,one\n", {"caption": "one"}),
        ("file,label\nA.MP4,one\n", {"label": "one"}),
    ],
)
def test_labels_csv_as_people_write_it(tmp_path, labels, expected):
    (tmp_path / "a.mp4").write_bytes(MP4)
    (tmp_path / "labels.csv").write_bytes(labels.encode())
    row = rows(tmp_path)["a.mp4"]
    assert {key: row[key] for key in expected} == expected


def test_labels_find_the_one_file_that_is_meant(tmp_path, caplog):
    """A label is an odd spelling, its file the nearest name."""
    meant = {
        "s\\x.mp4": "s\\x.mp4",  # a real name first, then a path of another system
        "s/x.mp4": "s/x.mp4",
        "t\\y.mp4": "t/y.mp4",
        ".//t/../t/Z.MP4": "t/z.mp4",
        "cafe\u0301.mp4": "caf\u00e9.mp4",
        "B.mp4": "B.mp4",
        "b.mp4": "b.mp4",
    }
    for name in meant.values():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(MP4)
    lines = [f"{label},{number}" for number, label in enumerate(meant)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines, "gone.mp4,x"]))
    result = rows(tmp_path)
    assert [result[name]["label"] for name in meant.values()] == [str(n) for n in range(7)]
    assert "1 files are not in the input, e.g. line 9: gone.mp4" in caplog.text


def test_etag_changes_with_the_content(tmp_path):
    (tmp_path / "a.mp4").write_bytes(MP4)
    before = rows(tmp_path)["a.mp4"]
    assert rows(tmp_path)["a.mp4"] == before
    (tmp_path / "a.mp4").write_bytes(MP4 + b"x")
    assert rows(tmp_path)["a.mp4"]["etag"] != before["etag"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("name,label\na,b\n", "no column `file`; its first line has: name, label"),
        ("", "no column `file`; its first line has: nothing"),
        ("\n\nfile,labl\na.mp4,b\n", "line 3: column labl is unknown .did you mean label"),
        ("file,label,\na.mp4,b,\n", "a column has no name"),
        ("file,licence,license\na.mp4,b,c\n", "line 1: column licence is there twice"),
        ("file,split\na.mp4,test\n", "line 2: split test is unknown"),
        ("file,label\na.mp4,b\na.mp4,c\n", "line 3: a.mp4 has line 2 already"),
        ('file,label\na.mp4,"b\nc"\n\n./a.mp4,d\n', "line 5: ./a.mp4 has line 2 already"),
        ("file,label\na.mp4,b,c\n", "line 2: 3 cells, but 2 columns"),
        ("file,label\n,b\n", "line 2: names no file"),
        ("file,label\nx/a.mp4,b\n", "no file of the input, e.g. line 2: x/a.mp4 .*has e.g. B.mp4"),
        ("file,label\na.mp4,x\nC.mp4,b\n", "line 3: C.mp4 may be c.MP4 or c.mp4"),
        ('file,label\na.mp4,"b\n', "line 2 or later: no CSV in UTF-8"),
        (b"\xff\xfe", "no CSV in UTF-8"),
    ],
)
def test_invalid_labels_csv_is_a_config_error(tmp_path, labels, message):
    for name in ("a.mp4", "B.mp4", "c.mp4", "c.MP4"):
        (tmp_path / name).write_bytes(MP4)
    (tmp_path / "labels.csv").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    with pytest.raises(ConfigError, match=message):
        next(list_sources(str(tmp_path)))


def test_links_to_folders_are_followed_once(tmp_path):
    disk, folder = tmp_path / "disk", tmp_path / "in"
    for path in (disk / "one", disk / "two" / ".hidden", folder / "real" / "deep"):
        path.mkdir(parents=True)
        (path / "a.mp4").write_bytes(MP4)
    (folder / "a-link").symlink_to("real/deep")  # sorts first, but the file has a real path
    (folder / "x").symlink_to(disk / "one")
    (folder / "w").symlink_to(disk / "one")
    (disk / "one" / "again").symlink_to(disk / "one")
    (disk / "one" / "back").symlink_to(folder)
    (disk / "one" / "two").symlink_to(disk / "two")
    (disk / "two" / "b.mp4").write_bytes(MP4)
    for name in ("loop", "dangling.mp4"):
        (folder / name).symlink_to(name)
    (folder / ".cache").symlink_to(disk)
    names = {"real/deep/a.mp4", "w/a.mp4", "w/two/b.mp4", "loop", "dangling.mp4"}
    assert set(rows(folder)) == names


def test_empty_or_missing_input_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no files"):
        next(list_sources(str(tmp_path)))
    with pytest.raises(ConfigError, match="no such folder"):
        next(list_sources((tmp_path / "gone").as_uri()))
    (tmp_path / "a.mp4").write_bytes(MP4)
    with pytest.raises(ConfigError, match="not a folder"):
        next(list_sources(str(tmp_path / "a.mp4")))
    with pytest.raises(ConfigError, match="unknown kind of input"):
        next(list_sources("http://host/x"))


def test_synthetic_corpus_is_listed_and_fetched(tmp_path):
    listed = next(list_sources("rendered://shapes?num_videos=3&seed=0")).to_pylist()
    assert len(listed) == 3
    with SandboxedDecoder(ScanPlan(), Limits(wall_s=20)) as decoder:
        path, sha256 = decoder.fetch(listed[0]["uri"], tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def test_input_that_is_one_file_is_read(tmp_path):
    path = tmp_path / "a b.txt"
    path.write_bytes(b"a cat")
    assert read_input(str(path)) == read_input(path.as_uri()) == b"a cat"
    os.mkfifo(tmp_path / "pipe.txt")
    for name, what in (("none.txt", "no such file"), ("pipe.txt", "is not a file")):
        with pytest.raises(ConfigError, match=what):
            read_input(str(tmp_path / name))
    with pytest.raises(ConfigError, match="unknown kind of input"):
        read_input("http://localhost/a.txt")
