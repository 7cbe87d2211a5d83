"""A mount served by the product's own workers, in a mount namespace of the calling process: for programs in tests.

A test file that needs such a program is that program, too: `run_part` starts it, and `as_program` is its last line.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from squashmount import linux, supervisor
from squashmount.config import Config
from squashmount.images import open_image
from squashmount.keeper import Served, ServerDir
from squashmount.plan import Shift
from squashmount.runtime import Log
from squashmount.server.fusemount import mount_fuse, unmount_fuse


class Mounted:
    """Mounted when made; `workers` is what a supervisor has, and the caller must do what a supervisor does."""

    def __init__(self, top: str, squash: str, config: Config = Config()) -> None:  # noqa: B008 - a frozen value
        """Keep the server's files, and `log`, in the directory `top`."""
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        place = ServerDir(f"{top}/place")
        place.make()
        self.mountpoint = place.mountpoint
        fuse = mount_fuse(place.mountpoint, source=squash, default_permissions=False)
        served = Served(squash, "wire", Shift())
        image = open_image(squash, config)
        serving = supervisor.Serving(image, served, fuse, place, 0, Log(top, "info"))
        self.workers = supervisor.Workers(serving, os.open("/dev/null", os.O_RDONLY))

    def close(self) -> None:
        """Unmount and end the worker."""
        unmount_fuse(self.mountpoint)
        os.kill(self.workers.pid, signal.SIGKILL)
        os.waitpid(self.workers.pid, 0)


def run_part(part: Callable[..., Any], top: Path, *args: str) -> Any:
    """Return what `part(top, *args)` returns, called in a process of its own that runs the file `part` is defined in.

    A process that hangs is killed with all it started, and the test fails.
    """
    program = subprocess.Popen(
        [sys.executable, part.__code__.co_filename, part.__name__, str(top), *args],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        pytest.fail(f"{part.__name__} hangs")
    assert program.returncode == 0, err.decode()
    return pickle.loads(out)


def as_program(parts: dict[str, Any]) -> None:
    """Be the other side of `run_part`; `parts` are the globals of the file. What is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    out.write(pickle.dumps(parts[sys.argv[1]](*sys.argv[2:])))
    out.close()
