"""`squashmount mount FILE DIR`: any squash file on any directory, as root or as an ordinary user."""

import os
from collections.abc import Callable

from .config import Config
from .errors import HostError, SquashmountError, UsageError
from .images import open_image
from .keeper import daemonise, is_mounted, say_ready
from .process import quiet
from .runtime import Log, state_dir
from .server.fusemount import mount_fuse, mount_fusermount, unmount_fuse
from .server.tree import IdShift, Tree
from .server.wire import Stats, serve

Line = Callable[[str], None]
Engine = Callable[[int, Tree, Callable[[], None], Line], None]
"""Serves a descriptor until it is unmounted, calls back when the file system can be used, and logs what goes wrong."""


def mount_file(file: str, directory: str, config: Config, engine: str = "wire") -> None:
    """Return when `directory` shows the content of `file`; the server ends when it is unmounted.

    Raises UsageError for a directory that cannot be a mount point, DamagedError for what is not a squash file,
    HostError where FUSE cannot be used, ToolError when the engine is not installed.
    """
    target = os.path.realpath(directory)
    # first: a dead mount is not even a directory to stat(2)
    if is_mounted(target):
        raise UsageError(f"Something is mounted on {directory} already.", hint=f"squashmount umount {directory}")
    if not os.path.isdir(target):
        raise UsageError(f"{directory} is not a directory.", hint=f"mkdir -p {directory}")
    if not os.path.exists(file):
        raise UsageError(f"{file} does not exist.")
    daemonise(lambda ready: _serve(file, target, config, engine, ready))


def _serve(file: str, target: str, config: Config, engine: str, ready: int) -> None:
    image = open_image(file, config)
    serve_with = _pyfuse3() if engine == "pyfuse3" else _wire
    mount = mount_fuse if os.geteuid() == 0 else mount_fusermount
    fuse = mount(target, source=os.path.realpath(file))

    log = _log(config)

    def usable() -> None:
        os.chdir("/")
        say_ready(ready)

    try:
        serve_with(fuse, Tree(image, IdShift()), usable, log)
    except SquashmountError:
        # it never got as far as serving: nobody would answer on this mount
        unmount_fuse(target)
        raise


def _log(config: Config) -> Line:
    try:
        return Log(state_dir(config, dict(os.environ)), config.log_level).fail
    except HostError:
        return quiet  # a user without a runtime directory: the mount is worth more than its log


def _wire(fuse: int, tree: Tree, usable: Callable[[], None], log: Line) -> None:
    usable()
    serve(fuse, tree, threads=min(os.cpu_count() or 1, 4), stats=Stats(), log=log)


def _pyfuse3() -> Engine:
    from .server import pyfuse3_engine  # noqa: PLC0415 - an optional package, compiled, and slow to import

    return lambda fuse, tree, usable, log: pyfuse3_engine.serve(fuse, tree, ready=usable, log=log)
