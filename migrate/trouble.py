"""What an errno means for somebody who writes to a store, and in which place it happened."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from squashmount.errors import SpaceError, SquashmountError, StoreError

_MEANING = {
    errno.ENOSPC: ("No space left in {where}.", "free space there (migrate2scratch prune --now), or use another DIR"),
    errno.EDQUOT: (
        "Your quota in {where} is exceeded.",
        "free space there (migrate2scratch prune --now), or ask for more quota",
    ),
    errno.EROFS: ("{where} is mounted read-only.", "run this where the file system is writable"),
    errno.EACCES: ("{where} is not writable for you.", "use a DIR of your own, or ask its owner"),
    errno.EPERM: ("{where} is not writable for you.", "use a DIR of your own, or ask its owner"),
}


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn an OSError of the block into an error that names the place: what the OSError names, else the store `where`.

    In the store that is a SpaceError or StoreError. Elsewhere (Podman's graphroot, TMPDIR) DIR must not get the blame.
    """
    try:
        yield
    except OSError as err:
        place = _elsewhere(err, where)
        brief, hint = _MEANING.get(err.errno or 0, ("", ""))
        if place and err.errno in {errno.EACCES, errno.EPERM}:
            raise SquashmountError(f"You have no access to {place}.", details=str(err)) from err
        if brief:
            hint = f"free space in {place}" if place and hint.startswith("free space") else hint
            raise SpaceError(brief.format(where=place or where), details=str(err), hint=hint) from err
        kind = SquashmountError if place else StoreError
        raise kind(f"Input/output trouble in {place or where}.", details=str(err)) from err


def _elsewhere(err: OSError, where: str) -> str:
    """Return the directory of the file the error names, "" when it names none or one in `where`."""
    name = os.fsdecode(err.filename) if isinstance(err.filename, str | bytes) else ""
    inside = os.path.abspath(name) == os.path.abspath(where) or os.path.abspath(name).startswith(f"{where}{os.sep}")
    return "" if inside or not name else os.path.dirname(os.path.abspath(name))
