"""A confined process can read files and compute, and do nothing else to its machine."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.child_process import exit_code
from videoar.media.confinement import confine

DEEDS = {
    "network": lambda folder: socket.create_connection(("127.0.0.1", 9)),
    "datagram": lambda folder: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "program": lambda folder: os.execv("/bin/true", ["true"]),
    "program in a child": lambda folder: subprocess.run(["/bin/true"], check=True),
    "write": lambda folder: (folder / "seen").write_text("x"),
    "create": lambda folder: (folder / "new").touch(),
    "link": lambda folder: (folder / "link").symlink_to("seen"),
    "folder": lambda folder: (folder / "more").mkdir(),
    "remove": lambda folder: (folder / "seen").unlink(),
    "rename": lambda folder: (folder / "seen").rename(folder / "moved"),
    "signal": lambda folder: os.kill(os.getppid(), signal.SIGCONT),
}


def attempt(deed, folder):
    if confine():
        os._exit(77)
    assert (folder / "seen").read_text() == "mine"
    try:
        DEEDS[deed](folder)
    except PermissionError:
        os._exit(0)
    os._exit(1)


@pytest.mark.parametrize("deed", DEEDS)
def test_confined_process_is_refused(tmp_path, deed):
    (tmp_path / "seen").write_text("mine")
    code = exit_code(attempt, deed, tmp_path)
    if code == 77:
        pytest.skip("this machine does not confine")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]
    assert (tmp_path / "seen").read_text() == "mine"


def test_what_cannot_be_forbidden_is_said():
    script = (
        "import ctypes, videoar.media.confinement as c\n"
        "class Missing:\n"
        "    def __init__(self, name, **_):\n"
        "        raise OSError(name, 'not installed')\n"
        "c.ctypes.CDLL = Missing\n"
        "print(c.confine())"
    )
    printed = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert printed == "['system calls: not installed', 'writing: not installed']\n"
