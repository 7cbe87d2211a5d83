"""Changes of the store, in an order that never shows a lie. All functions need the lock of the whole store.

Adding: capsule → names → layer directories, links and big data → layers.json → images.json. The last rename shows the
image and moves its names in one step. Removing is the mirror image, begun by a marker, so that the next writer ends a
removal that was interrupted. `Store.step` is called between all steps.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from squashmount import atomic, jsonio, layout
from squashmount.errors import SquashmountError, StoreError
from squashmount.ids import ImageId
from squashmount.profile import Profile

from . import capsule, derive, lease
from .capsule import Capsule
from .derive import State
from .store import LOCK, WITHDRAWN, Store, ensure_directory, touch_lock

_PENDING = "publish.json"
"""In a capsule: the names it is to get. It goes when the publication is complete, by its writer or the next one."""


def begin(store: Store, held: lease.Lease) -> State:
    """Clean up after dead writers and return the state; every change below starts from one and returns the next."""
    collect(store, held)
    return store.state()


def add(store: Store, state: State, one: Capsule, staged: str, held: lease.Lease, *, names: Iterable[str]) -> State:
    """Publish a finished staging directory as the capsule of an image, with names taken from whoever has them.

    When this raises, names and capsules are as they were.
    """
    target = store.layout.capsule(one.image)
    wanted = list(names)
    atomic.replace_text(os.path.join(staged, _PENDING), _json({"names": wanted}))
    after = state.with_image(one).with_names(one.image, wanted)
    with _undoing(store, held) as undo:
        store.step("before capsule")
        held.check()
        if os.path.lexists(target):  # damaged, or the caller would not have squashed again
            damaged = _in_trash(store, one.image)
            os.rename(target, damaged)
            undo.rename_back(damaged, target)
        os.rename(staged, target)
        undo.push(os.rename, target, staged)
        atomic.sync_directory(store.layout.capsules)
        store.step("after capsule")
        _set_names(store, one.image, wanted, undo, held)
        refresh(store, after, held, changed=[one])
    _delete(os.path.join(target, _PENDING))
    return after


def add_names(store: Store, state: State, image: ImageId, names: Iterable[str], held: lease.Lease) -> State:
    """Give an image names; a name that another image has moves."""
    wanted = list(names)
    after = state.with_names(image, wanted)
    with _undoing(store, held) as undo:
        _set_names(store, image, wanted, undo, held)
        refresh(store, after, held)
    return after


def replace_squash(store: Store, state: State, one: Capsule, staged: str, held: lease.Lease) -> State:
    """Give an image that is there another squash file of the same content, in a finished staging directory.

    The new file comes beside the old one, capsule.json decides in one rename which counts, and the link follows. The
    old file waits in trash/ like that of a removed image. What an interruption leaves the next writer finishes.
    """
    capsule_dir = store.layout.capsule(one.image)
    held.check()
    atomic.replace_text(os.path.join(capsule_dir, _PENDING), _json({"names": []}))
    store.step("before squash")
    held.check()
    os.rename(os.path.join(staged, one.file), store.layout.squash(one.image, one.file))
    atomic.sync_directory(capsule_dir)
    store.step("after squash")
    held.check()
    os.rename(os.path.join(staged, "capsule.json"), store.layout.capsule_json(one.image))
    atomic.sync_directory(capsule_dir)
    store.step("after capsule.json")
    after = state.with_image(one)
    refresh(store, after, held, changed=[one])
    held.check()
    _retire(store, one)
    _delete(os.path.join(capsule_dir, _PENDING))
    return after


def _retire(store: Store, one: Capsule) -> None:
    """Move the squash files of a capsule that do not count to trash/: containers may run from them."""
    directory = store.layout.capsule(one.image)
    for name in os.listdir(directory):
        if layout.is_squash(name) and name != one.file:
            kept = _in_trash(store, one.image)
            os.mkdir(kept)
            os.chmod(kept, store.modes()[0])
            os.rename(os.path.join(directory, name), os.path.join(kept, name))
            store.step("after retiring")
    if not store.grace:
        empty_trash(store, one.image)


def set_profile(store: Store, image: ImageId, one: Profile, held: lease.Lease) -> None:
    """Put a profile beside the squash file of an image, in place of an older one. What is shown does not change.

    It is written where a dead writer's files are collected; the rename is the publication.
    """
    staged = os.path.join(store.layout.staging, held.holder.token)
    atomic.replace_text(staged, one.to_json(), mode=store.modes()[1])
    store.step("before profile")
    held.check()
    os.rename(staged, store.layout.profile(image))
    atomic.sync_directory(store.layout.capsule(image))
    store.step("after profile")


class _Undo:
    """What takes back the steps of a change that failed, the last step first.

    Taking back needs the lock like every other change: a writer that lost it leaves everything to the one that has it,
    whose collect() finishes the publication. Only renames and deletions: it works on a full file system.
    """

    def __init__(self, store: Store, held: lease.Lease) -> None:
        self._store = store
        self._held = held
        self._steps: list[Callable[[], object]] = []
        self._backups: list[str] = []

    def push(self, function: Callable[..., object], *arguments: object) -> None:
        """Remember how to take back the step that was just done."""
        self._steps.append(partial(function, *arguments))

    def rename_back(self, backup: str, path: str) -> None:
        """Remember what a path held before; the backup goes when the change is complete."""
        self._backups.append(backup)
        self.push(os.rename, backup, path)

    def forget(self) -> None:
        """Delete the backups: the change is complete, or taken back."""
        for backup in self._backups:
            _delete(backup)

    def run(self) -> None:
        """Take everything back while the lock is ours; the error that led here is the one to report."""
        with suppress(OSError, SquashmountError):
            for step in reversed(self._steps):
                self._held.check()
                step()
            self._held.check()
            self.forget()  # rename(2) does nothing when both names are links to one file: the backup is still there
            refresh(self._store, self._store.state(), self._held)


@contextmanager
def _undoing(store: Store, held: lease.Lease) -> Iterator[_Undo]:
    """Yield what undoes the block's steps; it is used when the block raises."""
    undo = _Undo(store, held)
    try:
        yield undo
    except BaseException:
        undo.run()
        raise
    undo.forget()


def _set_names(store: Store, image: ImageId, names: Iterable[str], undo: _Undo, held: lease.Lease) -> None:
    for name in names:
        held.check()
        path = store.name_file(name)
        backup = os.path.join(store.layout.trash, secrets.token_hex(8))
        try:
            _copy(path, backup)
            undo.rename_back(backup, path)
        except FileNotFoundError:
            undo.push(_delete, path)
        atomic.replace_text(path, _json({"name": name, "image": image}), mode=store.modes()[1])
        store.step("after name")


def _copy(path: str, copy: str) -> None:
    try:
        os.link(path, copy)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, copy)


def remove_name(store: Store, state: State, name: str, held: lease.Lease) -> State:
    """Take a name away; the image stays."""
    held.check()
    with suppress(FileNotFoundError):
        os.unlink(store.name_file(name))
    store.step("after name removal")
    after = state.without_name(name)
    refresh(store, after, held)
    return after


def remove_image(store: Store, state: State, image: ImageId, held: lease.Lease, *, at_once: bool = False) -> State:
    """Withdraw an image; its squash stays in trash/ for the grace period, unless `at_once`."""
    held.check()
    marker = os.path.join(store.layout.trash, f"{image}{WITHDRAWN}")
    os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC, store.modes()[1]))
    atomic.sync_directory(store.layout.trash)
    store.step("after marker")
    after = state.without_image(image)
    refresh(store, after, held)
    held.check()
    _withdraw(store, image)
    if at_once or not store.grace:
        empty_trash(store, image)
    _drop_extras(store, after)
    return after


def empty_trash(store: Store, only: ImageId | None = None) -> tuple[ImageId, ...]:
    """Delete the withdrawn images in trash/, or one, whoever may use it; return which. refresh() must follow."""
    found = [(image, path) for image, path in store.in_trash() if only in {None, image}]
    for _, path in found:
        _delete(path)
    return tuple(image for image, _ in found)


def refresh(store: Store, state: State, held: lease.Lease, *, changed: Iterable[Capsule] = ()) -> None:
    """Make what Podman reads fit the state; writes only what differs.

    The derived files of an image are looked at when it has `changed` or one of them is missing; a store of hundreds of
    images has ten thousand of them, each a request to the metadata server. `repair` names all images.
    """
    paths = store.layout
    _hide(store, held, lambda image: image not in state.capsules)
    for one in {each.image: each for each in (*changed, *_incomplete(store, state))}.values():
        _show(store, one)
    held.check()
    reordered = _replace(store, paths.layers_json, derive.layers_json(state))
    if reordered:
        touch_lock(paths.layers_lock, store.modes()[1])
    store.step("after layers.json")
    held.check()
    if _replace(store, paths.images_json, derive.images_json(state)) or reordered:
        touch_lock(paths.images_lock, store.modes()[1])
    store.step("after images.json")
    held.check()
    _drop_extras(store, state)
    store.step("after extras")


def is_shown(store: Store, state: State) -> bool:
    """Tell whether Podman sees the state: false when a writer was killed between its capsule and its images.json."""
    paths = store.layout
    for path, text in ((paths.layers_json, derive.layers_json(state)), (paths.images_json, derive.images_json(state))):
        try:
            with open(path, encoding="utf-8") as file:
                if file.read() != text:
                    return False
        except FileNotFoundError:
            return False
    return not _incomplete(store, state)


def _incomplete(store: Store, state: State) -> list[Capsule]:
    """Return the images of which a link, a layer directory or the big data is missing; three directories tell."""
    paths = store.layout
    links, layers, images = (set(os.listdir(path)) for path in (paths.links, paths.overlay, paths.images))

    def complete(one: Capsule) -> bool:
        chain = {layer.id for layer in one.chain}
        names = {layout.link_of(layer) for layer in chain} | {f"{layout.link_of(one.top)}.squash"}
        return one.image in images and chain <= layers and names <= links

    return [one for one in state.capsules.values() if not complete(one)]


def _show(store: Store, one: Capsule) -> None:
    _show_layers(store, one)
    store.step("after links")
    _show_data(store, one)
    store.step("after big data")


def collect(store: Store, held: lease.Lease) -> tuple[ImageId, ...]:
    """Finish interrupted removals and publications, and delete what dead writers left. refresh() must follow.

    Returns the images whose time in trash/ is over.
    """
    for image in os.listdir(store.layout.capsules):
        _finish_publication(store, ImageId(image))
    withdrawn = store.withdrawn()
    if withdrawn:
        _hide(store, held, lambda image: image in withdrawn)
    for image in withdrawn:
        _withdraw(store, image)
    gone = _sweep_trash(store)
    store.step("after trash")
    _sweep_staging(store)
    paths = store.layout
    for directory in (paths.ours, paths.names, paths.overlay, paths.links, paths.layers, paths.images):
        for entry in os.listdir(directory):
            if entry.startswith(atomic.TEMP_PREFIX):
                _delete(os.path.join(directory, entry))
    lease.sweep(paths.lock)
    return gone


def _withdraw(store: Store, image: ImageId) -> None:
    """Take the names of a hidden image and move its capsule to trash/, where its layer's link follows it."""
    for name, owner in store.names().items():
        if owner == image:
            os.unlink(store.name_file(name))
    store.step("after names removal")
    kept = _in_trash(store, image)
    with suppress(FileNotFoundError):
        os.utime(store.layout.capsule(image))  # its time begins
        os.rename(store.layout.capsule(image), kept)
        _show_kept(store, kept)
    store.step("after capsule removal")
    os.unlink(os.path.join(store.layout.trash, f"{image}{WITHDRAWN}"))


def _sweep_trash(store: Store) -> tuple[ImageId, ...]:
    """Delete what nothing needs, and withdrawn images whose time is over by the clock of the file system itself."""
    trash = store.layout.trash
    os.utime(trash)
    now = os.stat(trash).st_mtime
    kept = {path: image for image, path in store.in_trash()}
    gone = []
    for entry in os.listdir(trash):
        path = os.path.join(trash, entry)
        if path in kept and now - os.stat(path).st_mtime < store.grace:
            continue
        _delete(path)
        gone += [kept[path]] if path in kept else []
    return tuple(gone)


def _show_kept(store: Store, path: str) -> None:
    """Let the layer of a withdrawn image find its squash in trash/: a container made from it may start again.

    Podman finds the layers of a container by their links (containers-storage drivers/overlay, `lower`), not by records.
    """
    for one in _capsules_in([path]):
        _symlink(
            os.path.relpath(os.path.join(path, one.file), store.layout.links),
            store.layout.link_squash(layout.link_of(one.top)),
        )


def _capsules_in(directories: Iterable[str]) -> Iterator[Capsule]:
    for path in directories:
        with suppress(StoreError):
            yield capsule.read(os.path.join(path, "capsule.json"))


def _finish_publication(store: Store, image: ImageId) -> None:
    """Give an image the names and files its publisher died before writing."""
    path = os.path.join(store.layout.capsule(image), _PENDING)
    try:
        with open(path, "rb") as file:
            names = jsonio.get_strs(jsonio.load_object(file.read(), where=path), "names")
    except (FileNotFoundError, NotADirectoryError):
        return
    except StoreError:
        names = ()
    for name in names:
        text = _json({"name": name, "image": image})
        atomic.replace_text(store.name_file(name), text, mode=store.modes()[1])
    for one in _capsules_in([store.layout.capsule(image)]):
        _show(store, one)  # half of it may be there, and refresh() sees only what is missing
        _retire(store, one)
    os.unlink(path)


def _sweep_staging(store: Store) -> None:
    """Delete staging directories whose owner is gone: each bears the token of the lock its owner holds.

    The owner takes its lock first, and so the locks are read last: what was listed and has no lock has no owner.
    """
    entries = os.listdir(store.layout.staging)
    alive = {holder.token for name, holder in lease.holders(store.layout.lock).items() if name != LOCK}
    for entry in entries:
        if entry not in alive:
            _delete(os.path.join(store.layout.staging, entry))


def _hide(store: Store, held: lease.Lease, gone: Callable[[ImageId], bool]) -> None:
    """Before a layer record or a capsule goes, no image may point to it."""
    path = store.layout.images_json
    try:
        with open(path, "rb") as file:
            shown = jsonio.load_objects(file.read(), where=path)
    except (FileNotFoundError, StoreError):
        return  # nothing readable is shown; refresh() writes it anew
    kept = [record for record in shown if not gone(ImageId(str(record.get("id"))))]
    if len(kept) != len(shown):
        held.check()
        _replace(store, path, _json(kept))
        touch_lock(store.layout.images_lock, store.modes()[1])
        store.step("after hiding")


def _show_layers(store: Store, one: Capsule) -> None:
    paths = store.layout
    mode = store.modes()[0]
    for layer in one.chain:
        link = layout.link_of(layer.id)
        ensure_directory(paths.layer(layer.id), mode)
        ensure_directory(paths.diff(layer.id), one.root_mode)
        for name in ("merged", "work", "empty"):
            ensure_directory(os.path.join(paths.layer(layer.id), name), mode)
        _replace(store, os.path.join(paths.layer(layer.id), "link"), link)
        store.step("after layer directory")
        _symlink(os.path.join("..", layer.id, "diff"), paths.link(link))
    squash = os.path.relpath(paths.squash(one.image, one.file), paths.links)
    _symlink(squash, paths.link_squash(layout.link_of(one.top)))


def _show_data(store: Store, one: Capsule) -> None:
    source, target = store.layout.capsule_data(one.image), store.layout.image(one.image)
    if _same_files(source, target):
        return
    mode = store.modes()[0]
    temp = os.path.join(store.layout.images, f"{atomic.TEMP_PREFIX}{secrets.token_hex(8)}")
    os.mkdir(temp)
    os.chmod(temp, mode)
    for entry in os.listdir(source):
        with open(os.path.join(source, entry), "rb") as old, atomic.replacing(os.path.join(temp, entry)) as new:
            shutil.copyfileobj(old, new)
    if os.path.lexists(target):
        os.rename(target, os.path.join(store.layout.images, f"{atomic.TEMP_PREFIX}{secrets.token_hex(8)}"))
    os.rename(temp, target)


def _same_files(one: str, other: str) -> bool:
    try:
        if sorted(os.listdir(one)) != sorted(os.listdir(other)):
            return False
    except FileNotFoundError:
        return False
    return all(
        os.path.getsize(os.path.join(one, entry)) == os.path.getsize(os.path.join(other, entry))
        for entry in os.listdir(one)
    )


def _drop_extras(store: Store, state: State) -> None:
    """Delete the derived files of images that are gone; those in trash/ keep what a container starts with."""
    paths = store.layout
    kept = [path for image, path in dict(store.in_trash()).items() if image not in state.capsules]
    for path in kept:
        _show_kept(store, path)
    kept += [paths.capsule(image) for image in store.withdrawn()]
    layers = {layer.id for one in (*state.capsules.values(), *_capsules_in(kept)) for layer in one.chain}
    links = {layout.link_of(layer) for layer in layers}
    for link in os.listdir(paths.links):
        if link.removesuffix(".squash") not in links:
            _delete(os.path.join(paths.links, link))
    for layer in os.listdir(paths.overlay):
        if layer != "l" and layer not in layers:
            _delete(os.path.join(paths.overlay, layer))
    for entry in os.listdir(paths.images):
        if len(entry) == 64 and entry not in state.capsules:
            _delete(os.path.join(paths.images, entry))


def _symlink(target: str, path: str) -> None:
    try:
        if os.readlink(path) == target:
            return
    except OSError:
        pass
    temp = os.path.join(os.path.dirname(path), f"{atomic.TEMP_PREFIX}{secrets.token_hex(8)}")
    os.symlink(target, temp)
    os.rename(temp, path)


def _replace(store: Store, path: str, text: str) -> bool:
    """Replace a file if its text differs; return whether it did."""
    try:
        with open(path, "rb") as file:
            if file.read() == text.encode():
                return False
    except FileNotFoundError:
        pass
    atomic.replace_text(path, text, mode=store.modes()[1])
    return True


def _in_trash(store: Store, image: ImageId) -> str:
    return os.path.join(store.layout.trash, f"{image}-{secrets.token_hex(4)}")


def _delete(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
