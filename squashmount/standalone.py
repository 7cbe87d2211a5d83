"""`squashmount mount FILE DIR`: any squash file on any directory, as root or as an ordinary user."""

import os

from .config import Config
from .errors import SpaceError, UsageError
from .keeper import daemonise, is_mounted
from .runtime import quiet
from .server.fusemount import mount_fuse, mount_fusermount
from .server.tree import IdShift, Tree
from .server.wire import Stats, serve
from .squashfs.image import SquashImage


def mount_file(file: str, directory: str, config: Config) -> None:
    """Return when `directory` shows the content of `file`; the server ends when it is unmounted.

    Raises UsageError for a directory that cannot be a mount point, DamagedError for what is not a squash file,
    HostError where FUSE cannot be used.
    """
    target = os.path.realpath(directory)
    if not os.path.isdir(target):
        raise UsageError(f"{directory} is not a directory.", hint=f"mkdir -p {directory}")
    if is_mounted(target):
        raise UsageError(f"Something is mounted on {directory} already.", hint=f"squashmount umount {directory}")
    daemonise(lambda ready: _serve(file, target, config, ready))


def _serve(file: str, target: str, config: Config, ready: int) -> None:
    image = _open(file, config)
    mount = mount_fuse if os.geteuid() == 0 else mount_fusermount
    fuse = mount(target, source="squashmount")
    tree = Tree(image, IdShift())
    os.write(ready, b"ok")
    os.close(ready)
    os.chdir("/")
    serve(fuse, tree, threads=min(os.cpu_count() or 1, 4), stats=Stats(), log=quiet)


def _open(file: str, config: Config) -> SquashImage:
    try:
        return SquashImage.open(file, cache_bytes=config.cache_mib << 20)
    except FileNotFoundError as err:
        raise UsageError(f"{file} does not exist.") from err
    except PermissionError as err:
        raise SpaceError(f"{file} cannot be read.", details=str(err)) from err
