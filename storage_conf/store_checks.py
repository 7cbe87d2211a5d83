"""Facts → findings about additional image stores and the mount program. Pure.

What makes Podman refuse a whole store: containers/storage images.go and layers.go (load), overlay.go (parseOptions).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from squashmount.layout import FORMAT

from .facts import Facts
from .finding import Finding, error, info, warning
from .store_facts import StoreFacts, read_store

_REFUSED = "Podman then refuses the store, and with it every command."


class HasStores(Protocol):
    """Facts, or the stores of one file alone."""

    @property
    def stores(self) -> tuple[StoreFacts, ...]:
        """Return what was found in each store."""


@dataclass(frozen=True)
class _Stores:
    stores: tuple[StoreFacts, ...]


def content_findings(path: str) -> Iterator[Finding]:
    """Judge what is in one store: what makes Podman refuse it, and with it every command."""
    these = _Stores((read_store(path),))
    for check in _OF_CONTENT:
        yield from check(these)


def no_store(facts: Facts) -> Iterator[Finding]:
    """Report that nothing of ours is configured."""
    if not facts.stores:
        why = "Images squashed by migrate2scratch are found only through additionalimagestores."
        yield info("No additional image store is configured.", why, "squashmount-conf generate --write DIR")


def unusable_store(facts: HasStores) -> Iterator[Finding]:
    """Report a directory that is missing or closed."""
    for store in facts.stores:
        if store.problem:
            fix = f"make it (migrate2scratch init {store.path}), mount it, or take it out of additionalimagestores"
            yield error(f"The store {store.path} cannot be used: {store.problem}.", _REFUSED, fix)


def unreadable_store(facts: HasStores) -> Iterator[Finding]:
    """Report files that this user may not read."""
    for store in facts.stores:
        if store.unreadable:
            names = ", ".join(store.unreadable)
            fix = f"the owner of the store: chmod -R a+rX {store.path}/overlay-images {store.path}/overlay-layers"
            yield error(f"{store.path}: {names} cannot be read by you.", _REFUSED, fix)


def incomplete_store(facts: HasStores) -> Iterator[Finding]:
    """Report missing files: a lock is an error of Podman (podman#11484), a list an empty store."""
    for store in facts.stores:
        locks = [name for name in store.missing if name.endswith(".lock")]
        lists = [name for name in store.missing if name.endswith(".json")]
        fix = _repair(store)
        if locks:
            hidden = "Podman refuses the store (4.3.1 does), or shows none of its images and says nothing (5.4.2 does)."
            why = hidden if locks == ["overlay-images/images.lock"] else _REFUSED
            yield error(f"{store.path}: {', '.join(locks)} is missing.", why, fix)
        elif lists:
            yield warning(f"{store.path}: {', '.join(lists)} is missing.", "Podman shows an empty store.", fix)


def torn_store(facts: HasStores) -> Iterator[Finding]:
    """Report lists that cannot be parsed or have nothing in them."""
    for store in facts.stores:
        fix = _repair(store)
        for name, problem in store.torn:
            why = "Podman shows an empty store (4.3.1 does), or refuses it, and with it every command (5.4.2 does)."
            yield error(f"{store.path}/{name} is damaged: {problem}", why, fix)
        for name in store.empty:
            why = "Podman reads it as a store without images and says nothing."
            yield warning(f"{store.path}/{name} is empty.", why, fix)
        for image in store.layerless:
            why = "Its layer is in no record: podman lists the image but cannot run it."
            yield error(f"{store.path}: image {image[:12]} has no layer.", why, fix)


def duplicate_name(facts: HasStores) -> Iterator[Finding]:
    """Report one name on two images: ErrDuplicateImageNames."""
    for store in facts.stores:
        for name, ids in store.duplicates:
            shown = " and ".join(item[:12] for item in ids)
            yield error(f"{store.path}: the name {name} is on two images ({shown}).", _REFUSED, _repair(store))


def _repair(store: StoreFacts) -> str:
    if store.version:
        return f"the owner of the store: migrate2scratch repair {store.path}"
    return f"repair {store.path} with the program that made it, or take it out of additionalimagestores"


def newer_format(facts: HasStores) -> Iterator[Finding]:
    """Report a store written by a later version of this project."""
    for store in facts.stores:
        if store.version and not (store.version.isascii() and store.version.isdigit()):
            fix = f"the owner of the store: write {FORMAT} into {store.path}/squashmount/version"
            yield error(f"{store.path}: format {store.version!r} is not a number.", "The file is damaged.", fix)
        elif store.version and int(store.version) > FORMAT:
            why = f"This squashmount knows formats up to {FORMAT}."
            yield error(f"{store.path} has format {store.version}.", why, "install a newer squashmount on this node")


def no_locks(facts: HasStores) -> Iterator[Finding]:
    """Report a failing read lock; Podman repeats it for ever (rawfilelock_unix.go)."""
    for store in facts.stores:
        if store.lock == "timeout":
            why = "Either somebody is writing to the store now, or its file system does not answer; podman would hang."
            fix = "try again; if it stays: is the lock service running (NFS lockd, Lustre -o flock)?"
            yield error(f"{store.path}: a read lock on images.lock is not granted.", why, fix)
        elif store.lock != "ok":
            why = "Podman repeats a failing lock for ever: every command hangs without a message."
            fix = "mount the file system with locks (Lustre: -o flock or -o localflock)"
            yield error(f"{store.path}: locking fails with {store.lock}.", why, fix)


def missing_program(facts: Facts) -> Iterator[Finding]:
    """Report a mount_program that does not exist or run here."""
    program = facts.program
    fix = "install squashmount on this node, or: squashmount-conf generate --write --mount-program PATH"
    why = "Podman calls it for every container."
    if program.path and not program.path.startswith("/"):
        yield error(f"mount_program {program.path} is not an absolute path.", why, fix)
    elif program.path and not program.exists:
        yield error(f"mount_program {program.path} does not exist or is out of your reach.", why, fix)
    elif program.path and not program.executable:
        yield error(f"mount_program {program.path} cannot be executed by you.", why, f"chmod a+rx {program.path}")
    elif program.interpreter:
        what = f"mount_program {program.path}: its interpreter {program.interpreter} cannot be executed by you."
        yield error(what, why, "install squashmount from a Python that every user can reach")


def foreign_program(facts: Facts) -> Iterator[Finding]:
    """Report a squash store without a program that knows squashes."""
    squashed = [store.path for store in facts.stores if store.squashed]
    program = facts.program
    if not squashed or (program.kind == "squashmount"):
        return
    fix = f"squashmount-conf generate --write {' '.join(squashed)}"
    if not program.path:
        why = "The layers in it are empty directories: containers would see an empty root file system."
        yield error(f"{', '.join(squashed)} has squashed images, but no mount_program is set.", why, fix)
    elif program.kind == "fuse-overlayfs":
        why = "It does not know squash files: containers would see an empty root file system."
        yield error(f"mount_program is plain fuse-overlayfs, but {', '.join(squashed)} has squashed images.", why, fix)
    elif facts.machine.podman >= 6:
        why = "Wrappers of podman-hpc and parallax find no squash under Podman 6: containers see an empty root."
        yield error(f"mount_program {program.path} is not squashmount.", why, fix)
    else:
        why = "Wrappers of podman-hpc and parallax do not know builds, commits and keep-id on a squash."
        yield warning(f"mount_program {program.path} is not squashmount.", why, fix)


_OF_CONTENT: tuple[Callable[[HasStores], Iterator[Finding]], ...] = (
    unusable_store,
    unreadable_store,
    incomplete_store,
    torn_store,
    duplicate_name,
    newer_format,
    no_locks,
)
STORE_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    no_store,
    *_OF_CONTENT,
    missing_program,
    foreign_program,
)
