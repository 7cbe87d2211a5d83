"""Node-local staging: copy the squash file to a local disk or memory while containers already use it.

The copy has no name (O_TMPFILE, open(2)): it disappears with the server, however that ends, and nobody else can change
it. Containers start at once from the shared file; when the copy is complete and its sha256 is the one `mig` recorded,
the reader's descriptor is replaced by it, and the shared file system is not asked any more.
"""

import os
import stat
import time

from .config import Config
from .lean import NamedTuple, Thread
from .runtime import Log, outside_uid
from .squashfs.image import SquashImage

_CHUNK = 4 << 20
_COMPLETE = b"\n"
"""One byte behind the copy: it is complete and verified. A worker that replaces a killed one looks for it."""
_CAPSULE_BYTES = 4 << 20
_KEPT_FREE = 10
"""Percent of the local file system that staging leaves free."""


class Local(NamedTuple):
    """Where a copy goes, and the size (bytes) and sha256 it must have."""

    fd: int
    size: int
    sha256: str


def open_local(squash: str, config: Config, log: Log) -> Local | None:
    """Make the unnamed file in `stage_dir` if there is room; else None, and the log says why not."""
    directory = config.stage_dir.replace("$UID", str(outside_uid()))
    try:
        size = os.stat(squash).st_size
        room = os.statvfs(directory)
        if size > config.stage_mib << 20:
            log(f"not staged: {squash} is larger than stage_mib = {config.stage_mib}")
        elif room.f_bavail * room.f_frsize - size < room.f_blocks * room.f_frsize * _KEPT_FREE // 100:
            log(f"not staged: {directory} has no room for the {size >> 20} MiB of {squash}")
        elif not (sha256 := _recorded_sha256(squash)):
            log(f"not staged: no capsule.json beside {squash} says what its sha256 must be")
        else:
            return Local(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), size, sha256)
    except OSError as err:
        log.fail(f"not staged: {err}")
    return None


def stage(image: SquashImage, local: Local, log: Log) -> None:
    """Make `image` read from the copy: at once if a worker before this one completed it, else when a thread has.

    Whatever goes wrong is logged, and the image goes on being read from the shared file system.
    """
    if os.fstat(local.fd).st_size == local.size + len(_COMPLETE):
        _use(image, local, log)
    else:
        try:
            Thread(target=_fill, args=(image, local, log), daemon=True).start()
        except RuntimeError as err:
            log.fail(f"not staged: {image.name}: {err}")


def _fill(image: SquashImage, local: Local, log: Log) -> None:
    try:
        found = _copy(image.fileno(), local.fd, local.size)
        if found != local.sha256:
            log.fail(f"not staged: the copy of {image.name} has the sha256 {found}, capsule.json says {local.sha256}")
            os.ftruncate(local.fd, 0)
        else:
            os.pwrite(local.fd, _COMPLETE, local.size)
            _use(image, local, log)
    except OSError as err:
        log.fail(f"not staged: {image.name}: {err}")
        os.ftruncate(local.fd, 0)


def _use(image: SquashImage, local: Local, log: Log) -> None:
    # Other threads are reading by this number: each pread(2) uses the one file or the other
    os.dup2(local.fd, image.fileno(), inheritable=False)
    log(f"staged: {image.name} is read from a local copy of {local.size >> 20} MiB")


def _copy(source: int, target: int, size: int) -> str:
    import hashlib  # noqa: PLC0415 - OpenSSL is slow to load, and this is long after the start

    digest = hashlib.sha256()
    offset = 0
    while offset < size:
        began = time.monotonic()
        data = os.pread(source, _CHUNK, offset)
        if not data:
            break  # cut short meanwhile: the sum will tell
        digest.update(data)
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, offset)
            offset, view = offset + written, view[written:]
        # Half of the time for others. Not a low priority: it would keep Python's lock from who answers requests
        time.sleep(min(time.monotonic() - began, 0.1))
    return digest.hexdigest()


def _recorded_sha256(squash: str) -> str:
    """Return the sum in the capsule the squash file lies in, or nothing for a store that another program wrote."""
    import json  # noqa: PLC0415 - only where staging is wanted

    path = os.path.join(os.path.dirname(os.path.realpath(squash)), "capsule.json")
    try:
        # O_NONBLOCK: somebody else's store may hold a FIFO, or anything, of this name
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            capsule = json.loads(file.read(_CAPSULE_BYTES))
    except (OSError, ValueError, RecursionError):
        return ""
    found = capsule.get("sha256") if isinstance(capsule, dict) else None
    return found if isinstance(found, str) else ""
