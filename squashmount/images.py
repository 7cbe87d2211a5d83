"""Open a squash file for a server: what can be wrong with it is said in a sentence."""

import errno

from .config import Config
from .errors import StoreError
from .squashfs.image import SquashImage

_HINTS = {
    errno.ENOENT: "was the image removed (migrate2scratch rmi) meanwhile?",
    errno.EACCES: "ask its owner to make the file readable, and the directories above it searchable",
    errno.EPERM: "ask its owner to make the file readable, and the directories above it searchable",
    errno.ESTALE: "it was replaced or removed on another node: start the container again",
}


def open_image(path: str, config: Config) -> SquashImage:
    """Open it and check the superblock. Raises StoreError when it cannot be read, DamagedError for another format."""
    try:
        return SquashImage.open(path, cache_bytes=config.cache_mib << 20)
    except OSError as err:
        hint = _HINTS.get(err.errno or 0, "is the shared file system healthy on this node?")
        raise StoreError(f"The squash file {path} cannot be read.", details=str(err), hint=hint) from err
