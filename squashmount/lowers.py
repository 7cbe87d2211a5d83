"""Find the squash file behind each entry of Podman's lowerdir list.

Podman 4 and 5 name a layer by its short link (`l/LINK`, relative to the graphroot's overlay directory), read-only
mounts and Podman 6 by `<store>/overlay/<layer id>/diff`, and the store's root may be reached through symbolic links.
All of them end in the same real directory, so the entry is resolved and the squash looked up by the *layer*. Appending
a suffix to the string, as other squash mount programs do, finds nothing for two of the three spellings, and the
container starts on an empty root.
"""

import errno
import os

from .errors import DamagedError, StoreError
from .lean import NamedTuple


class Lower(NamedTuple):
    """One entry of the list: what Podman wrote, where it is, and the squash that holds its content (if one does)."""

    given: str
    path: str
    squash: str | None = None


def resolve_lowers(entries: tuple[str, ...], *, cwd: str) -> tuple[Lower, ...]:
    """Resolve the entries, topmost first, as far as the first squash; `cwd` is what relative ones are relative to.

    A squash is the flattened image: what lies below it is inside it, and need not even exist. Podman puts
    `<layer>/empty` below the diff of a lone layer (`podman diff`, `commit`), which podman-hpc's stores do not have.

    Raises StoreError for an entry that does not exist, DamagedError for a layer whose squash link leads nowhere.
    """
    found: list[Lower] = []
    for entry in entries:
        found.append(_resolve(entry, cwd))
        if found[-1].squash:
            break
    return tuple(found)


def _resolve(entry: str, cwd: str) -> Lower:
    path = os.path.realpath(os.path.join(cwd, entry))
    if not os.path.isdir(path):
        raise StoreError(
            f"The layer directory {entry} does not exist.",
            details=f"it resolves to {path}",
            hint="is the shared file system mounted on this node, and was the image removed (rmi) meanwhile?",
        )
    return Lower(entry, path, _squash_of(path))


def _squash_of(diff: str) -> str | None:
    layer, name = os.path.split(diff)
    if name != "diff":
        return None
    try:
        with open(os.path.join(layer, "link"), encoding="utf-8") as file:
            link = file.read(256).strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    if not link or "/" in link:
        return None
    squash = os.path.join(os.path.dirname(layer), "l", f"{link}.squash")
    try:
        os.stat(squash)
    except OSError as err:
        if err.errno not in {errno.ENOENT, errno.ENOTDIR}:
            raise
        if not os.path.islink(squash):
            return None
        raise DamagedError(
            f"The squash file of layer {os.path.basename(layer)[:12]} is missing.",
            details=f"{squash} points to {os.readlink(squash)}, which does not exist",
            hint="squash the image again (migrate2scratch mig), or repair the store (migrate2scratch repair)",
        ) from None
    return os.path.realpath(squash)


def has_whiteout_files(path: str) -> bool:
    """Tell whether an unpacked layer holds `.wh.` entries, which only fuse-overlayfs understands.

    With a mount program set, containers-storage unpacks deletions as files `.wh.NAME` (pkg/archive, WhiteoutFormat)
    instead of the 0/0 character devices kernel overlay knows; on kernel overlay the deleted files would be back.
    """
    pending = [path]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(".wh."):
                    return True
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return False
