"""What an errno means for somebody who writes to a store."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from squashmount.errors import SpaceError, StoreError

_MEANING = {
    errno.ENOSPC: ("No space left in {where}.", "free space there, or use another DIR"),
    errno.EDQUOT: ("Your quota in {where} is exceeded.", "free space there, or ask for more quota"),
    errno.EROFS: ("{where} is mounted read-only.", "run this where the file system is writable"),
    errno.EACCES: ("{where} is not writable for you.", "use a DIR of your own, or ask its owner"),
    errno.EPERM: ("{where} is not writable for you.", "use a DIR of your own, or ask its owner"),
}


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn an OSError of the block into a SpaceError or StoreError that names the store."""
    try:
        yield
    except OSError as err:
        brief, hint = _MEANING.get(err.errno or 0, ("", ""))
        if brief:
            raise SpaceError(brief.format(where=where), details=str(err), hint=hint) from err
        raise StoreError(f"Input/output trouble in {where}.", details=str(err)) from err
