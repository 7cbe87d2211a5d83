"""A mount served by the product's own workers, in a mount namespace of the calling process: for programs in tests."""

import os
import signal

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
