"""What sshd asks of a container's /etc/passwd and /etc/shadow, and the two lines that may have to change for root's.

sshd that starts as root does not run without the user "sshd", as whom it speaks with those who have not logged in yet,
and (without PAM) lets nobody in whose password in /etc/shadow begins with "!". Images without an sshd have neither
right. Both files are the container's own; what is changed stays in it.
"""

import os
import stat

from squashmount.errors import UsageError
from squashmount.lean import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tree import DirectoryTree

_PASSWD, _SHADOW = "/etc/passwd", "/etc/shadow"
_STRANGERS = "sshd:x:65534:65534:sshd:/run/sshd:/usr/sbin/nologin\n"
_MOST = 1 << 20  # bytes; a file that is read in part would be cut when it is written again


def for_root(config: dict[str, Any], root: "DirectoryTree") -> list[str]:
    """Make both files fit for an sshd that starts as root; returns lines for the log."""
    lines = []
    passwd = _read(config, root, _PASSWD)
    if not any(line.startswith("sshd:") for line in passwd.splitlines()):
        whole = passwd if passwd.endswith("\n") or not passwd else f"{passwd}\n"
        _write(config, root, _PASSWD, whole + _STRANGERS)
        lines.append("done: ssh: the container's /etc/passwd has a user sshd now")
    shadow = _read(config, root, _SHADOW, needed=False)
    entries = shadow.splitlines(keepends=True)
    for at, entry in enumerate(entries):
        name, _, rest = entry.partition(":")
        if name == "root" and rest.startswith("!"):
            password, colon, others = rest.partition(":")
            entries[at] = f"root:*{colon}{others}" if colon else entry
            _write(config, root, _SHADOW, "".join(entries))
            lines.append(f"done: ssh: root in the container's /etc/shadow is not locked now ({len(password)} signs)")
    return lines


def check_shell(config: dict[str, Any], root: "DirectoryTree", uid: int) -> None:
    """Raise UsageError when sshd would not let the container's user in: no entry, or a shell that is not there."""
    for line in _read(config, root, _PASSWD).splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2] == str(uid):
            shell = fields[6] or "/bin/sh"
            if root.kind(shell) != "file":
                raise UsageError(
                    f"The shell {shell} of the user {fields[0]} is not in the image.",
                    details="sshd lets nobody in without one",
                    hint="run it as yourself: --userns=keep-id gives you /bin/sh",
                )
            return
    raise UsageError(f"The image's {_PASSWD} knows no user {uid}.", hint="sshd asks for one")


def _place(config: dict[str, Any], path: str) -> str:
    """Return the file on the host that is mounted there (Podman's, for users an image does not know), or ""."""
    for mount in config.get("mounts") or []:
        if mount.get("destination") == path:
            return str(mount.get("source", ""))
    return ""


def _open(config: dict[str, Any], root: "DirectoryTree", path: str, flags: int) -> int:
    mounted = _place(config, path)
    # what the user mounted himself is only read
    if mounted and flags & os.O_ACCMODE != os.O_RDONLY and "/overlay-containers/" not in mounted:
        raise UsageError(f"{mounted} is mounted on {path}, and sshd needs another one.", hint="--userns=keep-id")
    # O_PATH first: opening a device can have effects, and root's Podman may
    found = os.open(mounted, os.O_PATH | os.O_CLOEXEC) if mounted else root.open_fd(path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise UsageError(f"{path} in the image is not a file.")
        return os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC)
    finally:
        os.close(found)


def _read(config: dict[str, Any], root: "DirectoryTree", path: str, *, needed: bool = True) -> str:
    try:
        fd = _open(config, root, path, os.O_RDONLY)
    except OSError as err:
        if not needed:
            return ""
        raise UsageError(f"{path} in the image cannot be read.", details=str(err), hint="sshd needs it") from err
    with open(fd, "rb") as file:
        content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise UsageError(
            f"{path} in the image has more than {_MOST >> 20} MiB.", hint="--annotation squashmount.ssh=off"
        )
    return content.decode("utf-8", "surrogateescape")


def _write(config: dict[str, Any], root: "DirectoryTree", path: str, text: str) -> None:
    # in place: owner, mode and links of the file stay
    try:
        fd = _open(config, root, path, os.O_WRONLY)
        with open(fd, "wb") as file:
            file.truncate(file.write(text.encode("utf-8", "surrogateescape")))
    except OSError as err:
        raise UsageError(f"{path} in the container cannot be written.", details=str(err)) from err
