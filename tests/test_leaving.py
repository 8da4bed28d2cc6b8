"""How the process of a command ends."""

import signal
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="on_exit is glibc's")
@pytest.mark.parametrize(
    ("library", "words", "status"),
    [("OpenGL", "--version", 0), ("OpenGL", "juggle", 2), ("grpc", "juggle", 2)],
)
def test_what_a_library_does_when_a_process_ends_is_not_waited_for(library, words, status):
    """Mesa took down one film in eighty that was interrupted; here every process that ends so."""
    script = f"""
import atexit, ctypes, sys, types
from asd_policy import cli
libc = ctypes.CDLL(None)
libc.on_exit(ctypes.cast(libc.abort, ctypes.c_void_p), None)
if "with" in sys.argv:
    sys.modules[{library!r}] = types.ModuleType({library!r})
def main():
    atexit.register(print, "a handler of the command's")
    return command()
command, cli.main = cli.main, main
sys.argv[1:] = [{words!r}]
cli.program()
"""
    ended = {}
    for how in ("with", "without"):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True)
        ended[how] = done.returncode
        assert "a handler of the command's" in done.stdout
        assert "asd-policy " in done.stdout or "error: expected a command" in done.stderr
    assert ended == {"with": status, "without": -signal.SIGABRT}
