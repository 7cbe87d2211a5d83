r"""What Podman asks of a mount program: `-o OPTIONS TARGET` → MountRequest. Pure: nothing is read or opened.

The option string is made by containers-storage (drivers/overlay/overlay.go, `get`): `lowerdir=A:B:C` with the topmost
layer first, `upperdir=`, `workdir=`, then whatever storage.conf's `mountopt` says, `volatile` for `--rm` containers,
`context="…"` under SELinux and `uidmapping=`/`gidmapping=` or `squash_to_uid=` when the container has its own id map.
Read-only mounts have no upperdir. Empty options occur (`,,volatile`, a trailing comma). `\:` and `\,` are escapes.
"""

from . import linux
from .errors import UsageError
from .idmap import IdMap, IdRange
from .lean import Iterator, NamedTuple

VFS_FLAGS = {
    "ro": linux.MS_RDONLY,
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
    "noatime": linux.MS_NOATIME,
    "nodiratime": linux.MS_NODIRATIME,
    "relatime": linux.MS_RELATIME,
    "strictatime": linux.MS_STRICTATIME,
    "rw": 0,
    "suid": 0,
    "dev": 0,
    "exec": 0,
    "defaults": 0,
}
"""Options of every mount (mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS") and their mount(2) flags."""

KERNEL_OPTIONS = frozenset({"metacopy", "index", "redirect_dir", "xino", "nfs_export", "uuid", "verity", "userxattr"})
"""Options the kernel's overlay understands (Documentation/filesystems/overlayfs.rst)."""

HINT_OPTIONS = frozenset({"fsync", "threaded", "clone_fd", "max_idle_threads", "timeout", "max_write"})
"""fuse-overlayfs' tuning: about its own speed, without a meaning (and without a need) for kernel overlay."""


NO_PREFETCH = "no-prefetch"
"""Our own option, for `mountopt` in storage.conf: the server, if this call starts it, reads nothing ahead."""


class MountRequest(NamedTuple):
    """One call of the mount program. `raw` is the option string as it came, less our own, for handing over."""

    target: str
    raw: str
    lowers: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    volatile: bool = False
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
    context: str = ""
    flags: int = 0
    kernel_options: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    fuse_only: tuple[str, ...] = ()
    prefetch: bool = True

    @property
    def shifted(self) -> bool:
        """Tell whether the container sees other ids than the image has."""
        return bool(self.uid_map or self.gid_map or self.squash_uid is not None or self.squash_gid is not None)


def parse_request(options: str, target: str) -> MountRequest:
    """Parse one call. Raises UsageError for what cannot be meant, never drops an option."""
    found: dict[str, str] = {}
    vfs, kernel, hints, fuse_only = 0, [], [], []
    for option in split_options(options):
        key, _, value = option.partition("=")
        if key in _VALUES:
            found[key] = value
        elif option in VFS_FLAGS:
            vfs |= VFS_FLAGS[option]
        elif option in {"volatile", NO_PREFETCH}:
            found[key] = "1"
        elif key in KERNEL_OPTIONS:
            kernel.append(option)
        elif key in HINT_OPTIONS:
            hints.append(option)
        else:
            fuse_only.append(option)
    if "lowerdir" not in found:
        raise UsageError("The mount options name no lowerdir.", details=f"options: {options}", hint=_HINT)
    if ("upperdir" in found) != ("workdir" in found):
        raise UsageError("upperdir and workdir go together.", details=f"options: {options}", hint=_HINT)
    return MountRequest(
        target=target,
        raw=_without(options, NO_PREFETCH) if NO_PREFETCH in found else options,
        lowers=tuple(split_lowers(found["lowerdir"])),
        upper=_unescaped(found["upperdir"]) if "upperdir" in found else None,
        work=_unescaped(found["workdir"]) if "workdir" in found else None,
        volatile="volatile" in found,
        uid_map=parse_id_map("uidmapping", found.get("uidmapping", "")),
        gid_map=parse_id_map("gidmapping", found.get("gidmapping", "")),
        squash_uid=_id("squash_to_uid", found.get("squash_to_uid")),
        squash_gid=_id("squash_to_gid", found.get("squash_to_gid")),
        context=found.get("context", ""),
        flags=vfs,
        kernel_options=tuple(kernel),
        hints=tuple(hints),
        fuse_only=tuple(fuse_only),
        prefetch=NO_PREFETCH not in found,
    )


_VALUES = frozenset(
    {"lowerdir", "upperdir", "workdir", "uidmapping", "gidmapping", "squash_to_uid", "squash_to_gid", "context"}
)
_HINT = "Podman calls this program; set it as mount_program in storage.conf (squashmount-conf generate)"


def _without(options: str, unwanted: str) -> str:
    return ",".join(option for option in split_options(options) if option != unwanted)


def split_options(text: str) -> list[str]:
    r"""Split at commas that are neither escaped (`\,`) nor inside double quotes (SELinux contexts hold commas).

    Escapes stay in the pieces, because `\:` still has to be told from a separator; empty pieces are left out.
    """
    return [piece for piece in _split(text, ",", quotes=True) if piece]


def split_lowers(text: str) -> list[str]:
    r"""Split a lowerdir list at colons that are not escaped (`\:`) and unescape each path. Leftmost is topmost."""
    lowers = [_unescaped(piece) for piece in _split(text, ":", quotes=False) if piece]
    if not lowers:
        raise UsageError("The lowerdir option is empty.", hint=_HINT)
    return lowers


def _split(text: str, separator: str, *, quotes: bool) -> Iterator[str]:
    start, index, quoted = 0, 0, False
    while index < len(text):
        char = text[index]
        if char == "\\":
            index += 1
        elif char == '"' and quotes:
            quoted = not quoted
        elif char == separator and not quoted:
            yield text[start:index]
            start = index + 1
        index += 1
    yield text[start:]


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    out, index = [], 0
    while index < len(text):
        if text[index] == "\\" and index + 1 < len(text):
            index += 1
        out.append(text[index])
        index += 1
    return "".join(out)


def escape_path(path: str) -> str:
    r"""Escape a path for an option string: the reverse of what `split_options` and `split_lowers` undo."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def parse_id_map(option: str, text: str) -> IdMap:
    """Parse `container:host:count` triples in a row; Podman writes a leading colon (`:0:1:1001:…`)."""
    numbers = [_id(option, piece) for piece in text.split(":") if piece]
    if len(numbers) % 3:
        raise UsageError(f"{option}={text} is not a list of container:host:count triples.", hint=_HINT)
    values = [number for number in numbers if number is not None]
    return tuple(IdRange(*values[at : at + 3]) for at in range(0, len(values), 3))


def _id(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    # int() would take "-1", "+1", "1_0" and blanks
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**32:
        raise UsageError(f"{option} holds {text!r}, which is not an id.", hint=_HINT)
    return int(text)
