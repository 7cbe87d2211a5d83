"""The main job: find the image, plan, squash under the image's lock, publish under the store's lock."""

import dataclasses
import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from squashmount import atomic, jsonio, layout, process
from squashmount.errors import ImageNotFoundError, StoreError, UsageError
from squashmount.profile import Profile, placed
from squashmount.squashfs.image import SquashImage

from . import lease, mksquashfs, publish, source, squash
from .capsule import Capsule, own_record
from .derive import State
from .image import Graph, Image, read_graph
from .job import Job
from .mksquashfs import Format
from .plan import Action, Discard, Drop, Name, Share, Squash, Unname, plan_migration, plan_prune
from .progress import Progress
from .source import Podman, PodmanStore
from .store import Store
from .trouble import explained


@dataclass(frozen=True, slots=True)
class Options:
    """How `mig` works. `wait` is in seconds."""

    podman: Podman = field(default_factory=Podman)
    format: Format = field(default_factory=Format)
    processors: int = 0
    replace: bool = False
    check: bool = True
    wait: float = 600.0
    on_wait: Callable[[str], None] = lambda _text: None
    log: process.Log = process.quiet
    progress: Progress = field(default_factory=Progress)
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An image in Podman's store."""

    store: PodmanStore
    graph: Graph
    image: Image

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Return the digests of the layers, bottom first."""
        return self.graph.diff_ids(self.image.layer)

    @property
    def layer_count(self) -> int:
        """Return how many layers the image's configuration names (OCI image specification, config.md, rootfs)."""
        path = self.graph.big_data_path(self.image.id, f"sha256:{self.image.id}")
        try:
            with open(path, "rb") as file:
                config = jsonio.load_object(file.read(), where=path)
        except FileNotFoundError:
            return len(self.diff_ids)
        return len(jsonio.get_strs(jsonio.get_object(config, "rootfs"), "diff_ids"))


def find(name: str, options: Options, store: Store) -> Source:
    """Find the image in Podman's own store; errors say why it cannot be squashed from there."""
    pod = source.describe(options.podman, options.log)
    with explained(pod.graphroot):
        graph = read_graph(pod.graphroot, pod.driver, pod.additional)
        wanted = source.resolve(options.podman, graph, name, options.log)
    image = graph.image(wanted)
    if image is None:
        with explained(store.root):
            already = wanted in store.state(readable_only=True).capsules
        raise ImageNotFoundError(
            f"{name} is not in your own store {pod.graphroot}, only in an additional one.",
            details=f"image {wanted[:12]}" + (f" is in {store.root} already" if already else ""),
            hint="" if already else f"podman pull {name}",
        )
    if not image.layer:
        raise UsageError(f"{name} has no layers: it is a manifest list or an artifact.", hint="name one of its images")
    return Source(pod, graph, image)


def plan(store: Store, found: Source, options: Options) -> tuple[Action, ...]:
    """Return what has to be done now."""
    with explained(store.root):
        return _plan(store.state(), found, options)


def _plan(state: State, found: Source, options: Options) -> tuple[Action, ...]:
    order = options.profile.order() if options.profile else ""
    return plan_migration(state, found.image, found.diff_ids, options.format, replace=options.replace, order=order)


def migrate(store: Store, found: Source, options: Options) -> tuple[Action, ...]:
    """Do it and return what was done. On an error the store is as it was."""
    image = found.image
    with explained(store.root):
        state = store.state()
        actions = _plan(state, found, options)
        if not actions and publish.is_shown(store, state):
            return ()
        if not any(isinstance(action, Squash | Share) for action in actions):
            return _publish(store, found, options, None)
        with store.lock(
            name=f"image-{image.id}", doing=f"squash {_title(image)}", timeout=options.wait, on_wait=options.on_wait
        ) as held:
            actions = plan(store, found, options)
            if not actions or isinstance(actions[0], Name | Drop):
                return _publish(store, found, options, None)
            staged = os.path.join(store.layout.staging, held.holder.token)
            os.mkdir(staged)
            try:
                os.chmod(staged, store.modes()[0])
                one = _stage(store, found, options, actions[0], staged)
                store.step("staged")
                return _publish(store, found, options, (one, staged, held))
            finally:
                shutil.rmtree(staged, ignore_errors=True)


def remove(
    store: Store,
    decide: Callable[[State], tuple[Action, ...]],
    options: Options,
    *,
    dry_run: bool = False,
    at_once: bool = False,
) -> tuple[Action, ...]:
    """Do what `decide` says about the state under the lock (plan_removal); return what was done.

    `at_once` deletes the squash of a removed image although containers may run from it.
    """
    with explained(store.root):
        actions = decide(store.state())
        if dry_run or not actions:
            return actions
        with store.lock(doing="rmi", timeout=options.wait, on_wait=options.on_wait) as held:
            state = publish.begin(store, held)
            actions = decide(state)
            _remove(store, state, actions, held, at_once=at_once)
            return actions


def prune(store: Store, options: Options, *, dry_run: bool = False, at_once: bool = False) -> tuple[Action, ...]:
    """Remove the images without a name, and those in trash/ whose time is over, or all of them."""
    with explained(store.root):
        actions = plan_prune(store.state())
        if dry_run:
            return actions + tuple(Discard(image) for image, _ in store.in_trash() if at_once)
        with store.lock(doing="prune", timeout=options.wait, on_wait=options.on_wait) as held:
            gone = publish.collect(store, held)
            state = store.state()
            actions = plan_prune(state)
            state = _remove(store, state, actions, held, at_once=at_once)
            gone += publish.empty_trash(store) if at_once else ()
            if gone:
                publish.refresh(store, state, held)
            return actions + tuple(map(Discard, gone))


def _remove(
    store: Store, state: State, actions: tuple[Action, ...], held: lease.Lease, *, at_once: bool = False
) -> State:
    for action in actions:
        if isinstance(action, Unname):
            state = publish.remove_name(store, state, action.name, held)
        elif isinstance(action, Drop):
            state = publish.remove_image(store, state, action.image, held, at_once=at_once)
    return state


def _publish(
    store: Store, found: Source, options: Options, new: tuple[Capsule, str, lease.Lease] | None
) -> tuple[Action, ...]:
    image = found.image
    with store.lock(doing=f"publish {_title(image)}", timeout=options.wait, on_wait=options.on_wait) as held:
        state = publish.begin(store, held)
        actions = _plan(state, found, options)
        names = [action.name for action in actions if isinstance(action, Name)]
        if new:
            one, staged, image_lease = new
            image_lease.check()
            if image.id in state.capsules:
                state = publish.replace_squash(store, state, one, staged, held)
                if os.path.exists(profile := os.path.join(staged, layout.PROFILE)):
                    os.rename(profile, store.layout.profile(image.id))
                state = publish.add_names(store, state, image.id, names, held)
            else:
                state = publish.add(store, state, one, staged, held, names=names)
        else:
            state = publish.add_names(store, state, image.id, names, held)
        _remove(store, state, actions, held)
    return actions


def _stage(store: Store, found: Source, options: Options, action: Action, staged: str) -> Capsule:
    """Fill the staging directory: squash file, Podman's big data, capsule.json; all of it durable."""
    file = os.path.join(staged, "image.squashfs")
    _copy_big_data(found, os.path.join(staged, "data"), store.modes())
    if isinstance(action, Share):
        other = store.state().capsules[action.other]
        if _link(store.layout.squash(action.other, other.file), file):
            return _write(staged, _capsule_like(found, other), store.modes()[1])
        action = Squash(action.image, options.format)
    job = _job(found, options, staged, file)
    made = squash.make(job, options.podman, found.store, options.progress, check=options.check, log=options.log)
    os.chmod(file, store.modes()[1])
    with open(file, "rb") as squashed:
        os.fsync(squashed.fileno())
    one = _capsule(found, options, made)
    if options.profile:
        _keep_profile(options.profile, file, os.path.join(staged, layout.PROFILE), store.modes()[1])
        one = dataclasses.replace(one, order=options.profile.order())
        if isinstance(action, Squash) and action.again:
            one = dataclasses.replace(one, file=f"image-{one.sha256[:16]}.squashfs")
            os.rename(file, os.path.join(staged, one.file))
    return _write(staged, one, store.modes()[1])


def _keep_profile(profile: Profile, squash_file: str, path: str, mode: int) -> None:
    """Write the profile with the places that its files have in the new squash file."""
    with SquashImage.open(squash_file) as image:
        atomic.replace_text(path, placed(profile, image).to_json(), mode=mode)


def _job(found: Source, options: Options, staged: str, file: str) -> Job:
    image = found.image
    binary = mksquashfs.probe(log=options.log)
    mksquashfs.require(binary, options.format)
    chain = found.graph.chain(image.layer)
    runtime = os.path.join(staged, "run")
    os.mkdir(runtime, 0o700)
    return Job(
        podman=options.podman.argv(),
        image=image.id,
        output=file,
        binary=binary,
        format=options.format,
        created=squash.seconds_since_1970(image.created),
        processors=options.processors,
        copies=found.store.driver == "vfs",
        owner_records=found.graph.owner_records(image.layer),
        owners_seen=tuple(sorted(frozenset[int]().union(*(layer.owners_seen for layer in chain)))),
        owners_lost=found.store.ignores_chown_errors,
        runtime_dir=runtime,
        first=tuple(map(os.fsdecode, options.profile.files())) if options.profile else (),
        counts=os.path.join(found.store.runroot, f"{found.store.driver}-layers"),
    )


def _copy_big_data(found: Source, target: str, modes: tuple[int, int]) -> None:
    os.mkdir(target)
    os.chmod(target, modes[0])
    digests = found.image.raw.get("big-data-digests") or {}
    for key in found.image.big_data:
        path = found.graph.big_data_path(found.image.id, key)
        with open(path, "rb") as file:
            data = file.read()
        digest = digests.get(key)
        if isinstance(digest, str) and digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise StoreError(f"Podman's own copy of {key} is damaged.", details=path, hint="pull the image again")
        with atomic.replacing(os.path.join(target, layout.big_data_name(key)), mode=modes[1]) as copy:
            copy.write(data)


def _capsule(found: Source, options: Options, made: squash.Squashed) -> Capsule:
    return Capsule(
        image=found.image.id,
        record=own_record(found.image.raw),
        diff_ids=found.diff_ids,
        size=made.size,
        sha256=made.sha256,
        tree_bytes=made.tree_bytes,
        entries=made.entries,
        root_mode=made.root_mode,
        compressor=options.format.compressor,
        level=options.format.level,
        block=options.format.block,
        squashed=now(),
        made_by=made_by(),
        restored_owners=made.restored,
        layers=found.layer_count,
    )


def _capsule_like(found: Source, other: Capsule) -> Capsule:
    return dataclasses.replace(
        other,
        image=found.image.id,
        record=own_record(found.image.raw),
        squashed=now(),
        made_by=made_by(),
        layers=found.layer_count,
        file=layout.SQUASH,
    )


def _write(staged: str, one: Capsule, mode: int) -> Capsule:
    with suppress(FileNotFoundError):
        os.rmdir(os.path.join(staged, "run"))
    atomic.replace_text(os.path.join(staged, "capsule.json"), one.to_json(), mode=mode)
    return one


def _link(source_file: str, target: str) -> bool:
    try:
        os.link(source_file, target)
    except OSError:
        return False
    return True


def now() -> str:
    """Return the time as RFC 3339, to the microsecond: images are listed in this order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def made_by() -> str:
    """Return who runs this and where, for people."""
    return f"{lease.user_name()}@{socket.gethostname()}"


def _title(image: Image) -> str:
    return image.names[0] if image.names else image.id[:12]
