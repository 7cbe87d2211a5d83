"""The node and the user as a probe sees them; unit tests put another file system root and environment in its place."""

import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice


@dataclass(frozen=True)
class Node:
    """What a probe may ask of its surroundings.

    `root` is put before every file of the node (/etc, /proc, /sys): `/` in earnest. `baseline` is a file of
    `squashmount-conf ids baseline` that says which ranges everybody had, or empty.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    root: str = "/"
    baseline: str = ""

    def path(self, name: str) -> str:
        """Return where an absolute path of the node lies."""
        return os.path.join(self.root, name.lstrip("/"))

    def text(self, name: str) -> str | None:
        """Return a file of the node, or None where it cannot be read; odd bytes become surrogates.

        At most 64 MiB: a configuration file is smaller, and a probe must not eat the node's memory.
        """
        data = self.bytes(name)
        return None if data is None else os.fsdecode(data)

    def bytes(self, name: str) -> bytes | None:
        """Return a file of the node as it is, or None where it cannot be read; at most 64 MiB."""
        try:
            # sysctl files refuse a read(2) of more than the kernel allocates at once (proc_sys_call_handler)
            with open(self.path(name), "rb", buffering=0, opener=_at_once) as file:
                if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
                    return None
                parts = iter(lambda: file.read(1 << 16), b"")
                return b"".join(islice(parts, 1024))
        except OSError:
            return None

    @property
    def passwd(self) -> pwd.struct_passwd | None:
        """Return the entry of passwd(5) by nsswitch, which may hang with sssd; None for a uid without one."""
        try:
            return pwd.getpwuid(self.uid)
        except KeyError:
            return None

    @property
    def user(self) -> str | None:
        """Return the login name by passwd(5) and nsswitch; None for a uid without an entry."""
        entry = self.passwd
        return entry.pw_name if entry else None

    @property
    def name(self) -> str:
        """Return the name Podman looks ranges up by: $USER before passwd (podman, rootless.GetConfiguredMappings)."""
        return self.environ.get("USER") or self.user or str(self.uid)

    @property
    def runtime_dir(self) -> str:
        """Return $XDG_RUNTIME_DIR as it is set; empty when it is not."""
        return self.environ.get("XDG_RUNTIME_DIR", "")


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO that nobody writes into would never open
