"""`verify` and `repair`: the store must hold what its capsules say, and show Podman what follows from them."""

import hashlib
import json
import os
import stat
from dataclasses import dataclass

from squashmount import jsonio, layout, profile
from squashmount.errors import StoreError
from squashmount.ids import LayerId

from . import derive, lease, publish
from .capsule import Capsule
from .derive import State
from .store import LOCK, Store, is_kept, open_store

_REPAIR = "migrate2scratch repair"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: where, what, and what to do. `serious` means that Podman or a container would notice."""

    where: str
    what: str
    fix: str
    serious: bool = True

    def describe(self) -> str:
        """Return a line for people."""
        return f"{self.where}: {self.what} ({self.fix})"


def verify(store: Store, *, full: bool = False) -> tuple[Finding, ...]:
    """Check everything without a lock and without writing. `full` reads every squash file and big data item."""
    state = store.state(readable_only=True)
    found = _capsules(store, full=full)
    found += _derived(store, state)
    for one in state.capsules.values():
        found += _layers(store, one) + _big_data(store, one)
    return tuple(found + _leftovers(store))


def repair(store: Store, *, timeout: float = 600.0) -> State:
    """Rebuild everything that Podman reads from the capsules. Damaged capsules are left out, not deleted."""
    with store.lock(doing="repair", timeout=timeout) as held:
        open_store(store.root, create=True)
        state = publish.begin(store, held)
        present = set(os.listdir(store.layout.capsules))
        for name, image in store.names().items():
            if image not in present:
                os.unlink(store.name_file(name))
        for image in state.capsules:
            _drop_wrong_copies(store.layout.image(image), store.layout.capsule_data(image))
        publish.refresh(store, state, held, changed=state.capsules.values())
        return state


def _capsules(store: Store, *, full: bool) -> list[Finding]:
    found = []
    everything = store.all_capsules()
    for one, trouble, error in everything:
        if error:
            found.append(Finding("capsule", trouble, "make it readable; until then nothing is changed in the store"))
        elif one is None:
            found.append(Finding("capsule", trouble.splitlines()[0], "mig the image again"))
        elif trouble:
            found.append(Finding(f"image {one.image[:12]}", trouble, "mig the image again"))
        elif full and _sha256(store.layout.squash(one.image, one.file)) != one.sha256:
            what = "the contents of the squash file have changed"
            found.append(Finding(f"image {one.image[:12]}", what, "rmi and mig the image again"))
        if one and (useless := _profile_trouble(store, one)):
            found.append(Finding(f"profile of {one.image[:12]}", useless, "profile the image again", serious=False))
    names = store.names()
    capsules = {each.capsule.image for each in everything if each.capsule}
    found += [
        Finding(f"name {name}", f"belongs to image {image[:12]}, which is not there", _REPAIR, serious=False)
        for name, image in names.items()
        if image not in capsules
    ]
    return found


def _profile_trouble(store: Store, one: Capsule) -> str:
    """Return why servers ignore the profile of an image, "" when it is sound or there is none."""
    path = store.layout.profile(one.image)
    try:
        with open(path, "rb") as file:
            profile.parse(file.read(profile.MAX_BYTES + 1), where=layout.PROFILE)
    except FileNotFoundError:
        return ""
    except (OSError, StoreError) as err:
        return str(err).splitlines()[0]
    return ""


def _derived(store: Store, state: State) -> list[Finding]:
    paths = store.layout
    found = []
    for path, text in ((paths.layers_json, derive.layers_json(state)), (paths.images_json, derive.images_json(state))):
        where = os.path.relpath(path, store.root)
        try:
            with open(path, "rb") as file:
                shown = jsonio.load_objects(file.read(), where=where)
        except FileNotFoundError:
            found.append(Finding(where, "is missing", _REPAIR))
        except StoreError as err:
            found.append(Finding(where, f"is torn: Podman refuses the whole store ({err.details})", _REPAIR))
        else:
            if shown != json.loads(text):
                found.append(Finding(where, "is not what the capsules say", _REPAIR))
    for path in (paths.layers_lock, paths.images_lock):
        if not os.path.exists(path):
            where = os.path.relpath(path, store.root)
            found.append(Finding(where, "is missing: Podman refuses the whole store", _REPAIR))
    return found


def _layers(store: Store, one: Capsule) -> list[Finding]:
    found = [finding for layer in one.chain for finding in _layer(store, one, layer.id)]
    squash = store.layout.link_squash(layout.link_of(one.top))
    return found + _link(squash, store.layout.squash(one.image, one.file), where=f"image {one.image[:12]}")


def _layer(store: Store, one: Capsule, layer: LayerId) -> list[Finding]:
    paths = store.layout
    link = layout.link_of(layer)
    where = f"layer {layer[:12]} of image {one.image[:12]}"
    found = [
        Finding(where, f"directory {name} is missing", _REPAIR)
        for name in ("diff", "merged", "work", "empty")
        if not os.path.isdir(os.path.join(paths.layer(layer), name))
    ]
    try:
        mode = stat.S_IMODE(os.stat(paths.diff(layer)).st_mode)
        if mode != one.root_mode:
            found.append(Finding(where, f"diff has mode {mode:o}, the image's / has {one.root_mode:o}", _REPAIR))
        if os.listdir(paths.diff(layer)):
            found.append(Finding(where, "diff is not empty", f"empty {paths.diff(layer)}"))
    except OSError:
        pass
    found += _link(paths.link(link), paths.diff(layer), where=where)
    if _text(os.path.join(paths.layer(layer), "link")) != link:
        found.append(Finding(where, "the file link is missing or wrong", _REPAIR))
    return found


def _link(path: str, target: str, *, where: str) -> list[Finding]:
    if os.path.realpath(path) == os.path.realpath(target):
        return []
    return [Finding(where, f"link {os.path.basename(path)} leads nowhere or elsewhere", _REPAIR)]


def _big_data(store: Store, one: Capsule) -> list[Finding]:
    digests = jsonio.get_object(one.record, "big-data-digests")
    found = []
    for key, digest in digests.items():
        for directory, fix in (
            (store.layout.capsule_data(one.image), "rmi and mig"),
            (store.layout.image(one.image), _REPAIR),
        ):
            path = os.path.join(directory, layout.big_data_name(key))
            if not os.path.isfile(path) or f"sha256:{_sha256(path)}" != digest:
                where = os.path.relpath(path, store.root)
                found.append(Finding(where, "is missing or not what Podman stored", fix))
    return found


def _leftovers(store: Store) -> list[Finding]:
    staging, trash = os.listdir(store.layout.staging), os.listdir(store.layout.trash)
    holders = lease.holders(store.layout.lock)  # last: what was listed and has no holder now is nobody's
    alive = {holder.token for holder in holders.values()}
    unfinished = [entry for entry in staging if entry not in alive]
    unfinished += [entry for entry in trash if not is_kept(entry) and LOCK not in holders]
    return [Finding(entry, "is left over from an interrupted command", _REPAIR, serious=False) for entry in unfinished]


def _drop_wrong_copies(copy: str, original: str) -> None:
    """Delete copies of big data that differ from the originals; sizes alone do not show a flipped bit."""
    for entry in os.listdir(copy) if os.path.isdir(copy) else ():
        source = os.path.join(original, entry)
        if os.path.isfile(source) and _sha256(source) != _sha256(os.path.join(copy, entry)):
            os.unlink(os.path.join(copy, entry))


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
