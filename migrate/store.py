"""The store as its writer sees it: opening, creating, reading its state, taking its locks.

`publish.py` changes it, `derive.py` says what Podman must find in it, `squashmount.layout` names the files.
"""

import errno
import os
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple
from urllib.parse import quote

from squashmount import atomic, jsonio, layout
from squashmount.errors import DamagedError, StoreError
from squashmount.ids import ImageId

from . import capsule, lease, readback
from .capsule import Capsule
from .derive import State
from .trouble import explained

LOCK = "store"
DAY = 86400.0
WITHDRAWN = ".withdrawn"
_LONGEST_NAME = 255
Step = Callable[[str], None]


def no_step(_name: str) -> None:
    """Do nothing; tests put a crash here."""


class Found(NamedTuple):
    """What lies in one capsule directory; `trouble` says what is wrong with it, `error` that it cannot be read now."""

    capsule: Capsule | None
    trouble: str = ""
    error: OSError | None = None


class Store:
    """One DIR of our format. Raises StoreError or SpaceError (`trouble.explained`)."""

    def __init__(self, root: str, *, step: Step = no_step, grace: float = DAY) -> None:
        """Use `open_store()`; this only remembers. `grace` is how many seconds a withdrawn image stays in trash/."""
        self.root = root
        self.grace = grace
        self.layout = layout.StoreLayout(root)
        self.step = step

    def lock(
        self,
        *,
        doing: str,
        name: str = LOCK,
        timeout: float = 600.0,
        on_wait: Callable[[str], None] = lambda _text: None,
    ) -> AbstractContextManager[lease.Lease]:
        """Hold the lock of the whole store (default) or of one image."""
        return lease.hold(self.layout.lock, name, doing=doing, timeout=timeout, on_wait=on_wait)

    def state(self, *, readable_only: bool = False) -> State:
        """Return the images and names that count: undamaged, not withdrawn.

        What cannot be read now is not damaged: a writer that took it for damaged would take the image away from
        everybody because of one I/O error. So that raises StoreError, unless `readable_only`, which is for readers.
        """
        found = self.all_capsules()
        for each in found:
            if each.error and not readable_only:
                raise StoreError(
                    f"An image in {self.root} cannot be read.",
                    details=each.trouble,
                    hint="nothing was changed; try again when the file system answers, or ask the owner of the file",
                ) from each.error
        capsules = {each.capsule.image: each.capsule for each in found if each.capsule and not each.trouble}
        names = {name: image for name, image in self.names().items() if image in capsules}
        return State(capsules, names)

    def all_capsules(self) -> list[Found]:
        """Return every capsule that is not withdrawn, with what is wrong with it."""
        withdrawn = set(self.withdrawn())
        images = sorted(_listed(self.layout.capsules))
        return [
            self._found(ImageId(image))
            for image in images
            if not image.startswith(atomic.TEMP_PREFIX) and image not in withdrawn
        ]

    def _found(self, image: ImageId) -> Found:
        one = None
        try:
            one = capsule.read(self.layout.capsule_json(image))
            return Found(one, self._trouble_with(one))
        except StoreError as err:
            return Found(None, str(err))
        except OSError as err:
            return Found(one, str(err), err)

    def _trouble_with(self, one: Capsule) -> str:
        """Return what is wrong with the files of a capsule as far as sizes and the superblock tell."""
        squash = self.layout.squash(one.image, one.file)
        try:
            size = os.stat(squash).st_size
            if size != one.size:
                return f"squash file has {size} bytes instead of {one.size}"
            readback.header(squash)
        except FileNotFoundError:
            return "squash file is missing"
        except DamagedError as err:
            return str(err)
        sizes = jsonio.get_object(one.record, "big-data-sizes")
        for key in jsonio.get_strs(one.record, "big-data-names"):
            path = os.path.join(self.layout.capsule_data(one.image), layout.big_data_name(key))
            try:
                info = os.stat(path)
            except FileNotFoundError:
                return f"big data {key} is missing"
            if not stat.S_ISREG(info.st_mode) or info.st_size != sizes.get(key, -1):
                return f"big data {key} has another size"
        return ""

    def names(self) -> dict[str, ImageId]:
        """Return all names; a torn name file is no name, one that cannot be read now raises OSError."""
        found = {}
        for entry in _listed(self.layout.names):
            if not entry.startswith(atomic.TEMP_PREFIX):
                with (
                    suppress(StoreError, FileNotFoundError),
                    open(os.path.join(self.layout.names, entry), "rb") as file,
                ):
                    value = jsonio.load_object(file.read(), where=entry)
                    found[jsonio.get_str(value, "name")] = ImageId(jsonio.get_str(value, "image"))
        return found

    def name_file(self, name: str) -> str:
        """Return the file of one name; a name too long for a file name is represented by its digest."""
        encoded = quote(name, safe="")
        if len(encoded) > _LONGEST_NAME:
            import hashlib  # noqa: PLC0415 - hardly ever needed

            encoded = "~" + hashlib.sha256(name.encode()).hexdigest()
        return os.path.join(self.layout.names, encoded)

    def withdrawn(self) -> list[ImageId]:
        """Return the images whose removal has begun."""
        entries = _listed(self.layout.trash)
        return [ImageId(entry.removesuffix(WITHDRAWN)) for entry in entries if entry.endswith(WITHDRAWN)]

    def in_trash(self) -> list[tuple[ImageId, str]]:
        """Return the withdrawn images that containers may still use, with their directories; the oldest first."""
        found = []
        for entry in _listed(self.layout.trash):
            if is_kept(entry):
                path = os.path.join(self.layout.trash, entry)
                with suppress(FileNotFoundError):
                    found.append((os.stat(path).st_mtime_ns, ImageId(entry.partition("-")[0]), path))
        return [(image, path) for _, image, path in sorted(found)]

    def modes(self) -> tuple[int, int]:
        """Return the modes of directories and files: readable for all; group-writable when DIR itself is."""
        shared = stat.S_IMODE(os.stat(self.root).st_mode) & 0o2020
        return 0o755 | shared, 0o644 | (shared & 0o020)


def is_kept(entry: str) -> bool:
    """Tell whether an entry of trash/ is a withdrawn capsule."""
    return re.fullmatch("[0-9a-f]{64}-[0-9a-f]{8}", entry) is not None


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def open_store(
    root: str, *, create: bool = False, empty_ok: bool = False, step: Step = no_step, grace: float = DAY
) -> Store:
    """Open DIR, or create the store in an empty DIR. StoreError says why it cannot be ours."""
    store = Store(os.path.abspath(root), step=step, grace=grace)
    with explained(store.root):
        entries = _entries(store)
        if entries:
            _check_ours(store, entries)
        if create:
            _create(store)
        elif not entries and not empty_ok:
            raise StoreError(f"{root} is empty, not a store.", hint=f"migrate2scratch init {root}")
    return store


def _entries(store: Store) -> list[str]:
    try:
        return os.listdir(store.root)
    except FileNotFoundError:
        raise StoreError(f"{store.root} does not exist.", hint=f"migrate2scratch init {store.root}") from None
    except NotADirectoryError:
        raise StoreError(f"{store.root} is not a directory.") from None


def _check_ours(store: Store, entries: list[str]) -> None:
    try:
        with open(store.layout.version, encoding="ascii", errors="replace") as file:
            text = file.read().strip()
    except FileNotFoundError:
        if entries == ["squashmount"]:
            return  # an init that was interrupted before its last step
        raise _foreign(store.root, entries) from None
    if not text.isdigit():
        raise StoreError(
            f"{store.layout.version} is damaged.", details=repr(text), hint=f"write {layout.FORMAT} into it"
        )
    if int(text) > layout.FORMAT:
        raise StoreError(
            f"{store.root} has store format {text}, this version knows {layout.FORMAT}.", hint="update squashmount"
        )


def _foreign(root: str, entries: list[str]) -> StoreError:
    if "squash" in entries and "overlay" in entries:
        kind = "a store made by parallax"
    elif any(name.endswith(".squash") for name in _listed(os.path.join(root, "overlay", "l"))):
        kind = "a store made by podman-hpc"
    elif {"overlay-images", "overlay-layers", "overlay", "vfs"} & set(entries):
        kind = "a container store made by another program"
    else:
        return StoreError(
            f"{root} is not empty and not a store.",
            details="it holds " + ", ".join(sorted(entries)[:5]),
            hint=f"use a directory of its own, for example {os.path.join(root, 'images')}",
        )
    return StoreError(
        f"{root} is {kind}; it is never written to.",
        details="two programs that write the same JSON files lose each other's images",
        hint="use another DIR; images in this one can still be run",
    )


def _create(store: Store) -> None:
    """Make what is missing of an empty store; safe to repeat and to run twice at once. `version` comes last."""
    paths = store.layout
    directories, _ = store.modes()
    for path in (
        *(paths.ours, paths.capsules, paths.names, paths.lock, paths.staging, paths.trash),
        *(paths.overlay, paths.links, paths.layers, paths.images),
    ):
        ensure_directory(path, directories)
    for path in (paths.layers_lock, paths.images_lock):
        touch_lock(path, store.modes()[1], only_missing=True)
    for path in (paths.layers_json, paths.images_json):
        create_once(path, "[]")
    create_once(paths.version, f"{layout.FORMAT}\n")


def create_once(path: str, text: str) -> None:
    """Create a complete file unless it exists already, whoever else does the same (link(2) never replaces)."""
    if os.path.exists(path):
        return
    temp = os.path.join(os.path.dirname(path), f"{atomic.TEMP_PREFIX}{os.urandom(8).hex()}")
    atomic.replace_text(temp, text)
    try:
        os.link(temp, path)
        os.unlink(temp)
    except FileExistsError:
        os.unlink(temp)
    except OSError as err:
        if err.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
            raise
        os.rename(temp, path)


def ensure_directory(path: str, mode: int) -> None:
    """Make a directory of exactly this mode, whatever the umask; correct the mode of one of ours."""
    try:
        info = os.lstat(path)  # first: a failing mkdir(2) costs a request to the metadata server as well (Lustre)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(path, mode)
        info = os.lstat(path)
    if stat.S_IMODE(info.st_mode) != mode and info.st_uid == os.geteuid():
        os.chmod(path, mode)


def touch_lock(path: str, mode: int, *, only_missing: bool = False) -> None:
    """Write a fresh last-writer record (containers-storage pkg/lockfile: 64 bytes) so that running Podmans reload.

    In place: Podman may hold the file open and locked, a replaced file would be another lock. In a store that several
    people write somebody could have put a link or a FIFO there: StoreError.
    """
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    strange = StoreError(f"{path} is not a regular file.", hint="look who put it there, and delete it")
    try:
        fd = os.open(path, flags, mode)
    except OSError as err:
        if err.errno not in {errno.ELOOP, errno.EISDIR}:
            raise
        raise strange from err
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise strange
        if info.st_uid == os.geteuid() and stat.S_IMODE(info.st_mode) != mode:
            os.fchmod(fd, mode)
        if not only_missing or info.st_size == 0:
            os.pwrite(fd, os.urandom(64), 0)
    finally:
        os.close(fd)
