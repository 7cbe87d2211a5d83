"""The store under crashes: a child is killed at every named step of publishing and removing."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from migrate_helpers import assert_valid, image_id, put, shown, squash_file, staged
from squashmount.migrate import lease, publish, verify
from squashmount.migrate.store import DAY, Store, open_store
from squashmount.migrate.trouble import explained

from squashmount import atomic, layout
from squashmount.errors import BusyError, SpaceError, SquashmountError, StoreError
from squashmount.ids import ImageId
from squashmount.profile import FILE, Need, Profile, parse

A, B = image_id("a"), image_id("b")


@pytest.fixture
def squash(tmp_path: Path) -> bytes:
    return squash_file(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "DIR").mkdir()
    return str(tmp_path / "DIR")


def add(store: Store, squash: bytes) -> None:
    put(store, "b", ["x/moved:1", "x/b:1"], squash)


def remove(store: Store, _squash: bytes) -> None:
    with store.lock(doing="test") as held:
        publish.remove_image(store, publish.begin(store, held), A, held)


def untag(store: Store, _squash: bytes) -> None:
    with store.lock(doing="test") as held:
        publish.remove_name(store, publish.begin(store, held), "x/moved:1", held)


PROFILE = Profile((b"",), (Need(0, FILE, b"file", (0, 9)),))


def profile(store: Store, _squash: bytes) -> None:
    with store.lock(doing="test") as held:
        publish.begin(store, held)
        publish.set_profile(store, A, PROFILE, held)


def steps_of(change: Callable[[Store, bytes], None], root: str, squash: bytes) -> list[str]:
    store = open_store(root, create=True)
    put(store, "a", ["x/moved:1", "x/a:1"], squash)
    seen: list[str] = []
    store.step = seen.append
    change(store, squash)
    return seen


def squash_link(store: Store, image: ImageId) -> str:
    return store.layout.link_squash(layout.link_of(layout.image_layers(image, 1)[-1].id))


def killed_at(
    number: int, change: Callable[[Store, bytes], None], root: str, squash: bytes, *, grace: float = DAY
) -> None:
    """Run the change in a child that kills itself at its step `number`."""
    child = os.fork()
    if child == 0:
        store = open_store(root, grace=grace)
        count = 0

        def step(_name: str) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        store.step = step
        change(store, squash)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


BEFORE = {A: ["x/a:1", "x/moved:1"]}
AFTER_ADD = {A: ["x/a:1"], B: ["x/b:1", "x/moved:1"]}


@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("grace", [0, DAY])
@pytest.mark.parametrize(
    ("change", "allowed", "least"),
    [
        (add, [BEFORE, AFTER_ADD], 10),
        (remove, [BEFORE, {}], 7),
        (untag, [BEFORE, {A: ["x/a:1"]}], 4),
        (profile, [BEFORE], 3),
    ],
)
def test_a_killed_writer_never_leaves_a_lie(
    change: Callable[[Store, bytes], None],
    allowed: list[dict[str, list[str]]],
    least: int,
    grace: float,
    tmp_path: Path,
    squash: bytes,
) -> None:
    (tmp_path / "count").mkdir()
    steps = steps_of(change, str(tmp_path / "count"), squash)
    assert len(steps) >= least
    for number in range(1, len(steps) + 1):
        root = str(tmp_path / f"DIR{number}")
        os.mkdir(root)
        store = open_store(root, create=True, grace=grace)
        put(store, "a", ["x/moved:1", "x/a:1"], squash)
        killed_at(number, change, root, squash, grace=grace)
        assert_valid(store)
        assert shown(store) in allowed, f"after {steps[number - 1]}"
        put(store, "c", ["x/c:1"], squash)
        assert_valid(store)
        after = shown(store)
        assert after.pop(image_id("c")) == ["x/c:1"]
        assert after in allowed, f"the next writer after {steps[number - 1]}"
        assert os.listdir(store.layout.staging) == []
        assert len(os.listdir(store.layout.trash)) == (1 if grace and A not in after else 0)
        assert os.path.exists(squash_link(store, A)) == bool(grace or A in after)
        assert not [path for path in Path(root).rglob(".tmp-*") if path.parent.name != "lock"]


@pytest.mark.filterwarnings("ignore:This process")
def test_add_succeeds_after_any_crash(tmp_path: Path, squash: bytes) -> None:
    (tmp_path / "count").mkdir()
    for number in range(1, len(steps_of(add, str(tmp_path / "count"), squash)) + 1):
        root = str(tmp_path / f"DIR{number}")
        os.mkdir(root)
        store = open_store(root, create=True)
        put(store, "a", ["x/moved:1", "x/a:1"], squash)
        killed_at(number, add, root, squash)
        add(store, squash)
        assert_valid(store)
        assert shown(store) == AFTER_ADD


def test_publish_and_remove(root: str, squash: bytes) -> None:
    store = open_store(root, create=True, grace=0)
    put(store, "a", ["x/moved:1", "x/a:1"], squash)
    add(store, squash)
    assert_valid(store)
    assert shown(store) == AFTER_ADD
    remove(store, squash)
    assert_valid(store)
    assert shown(store) == {B: ["x/b:1", "x/moved:1"]}
    assert not os.path.exists(store.layout.capsule(A))
    assert sorted(os.listdir(store.layout.overlay)) == sorted(["l", layout.image_layers(B, 1)[-1].id])
    assert len(os.listdir(store.layout.links)) == 2


def test_a_removed_image_stays_for_its_containers_until_its_time_is_over(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    remove(store, squash)
    for other in ("b", "d"):
        assert_valid(store)
        assert A not in shown(store)
        assert Path(squash_link(store, A)).resolve(strict=True).parent.parent == Path(store.layout.trash)
        assert Path(squash_link(store, A)).read_bytes() == squash
        assert Path(store.layout.link(layout.link_of(layout.image_layers(A, 1)[-1].id))).resolve(strict=True).is_dir()
        assert verify.verify(store) == ()
        put(store, other, [f"x/{other}:1"], squash)
    ((_, kept),) = store.in_trash()
    os.utime(kept, (0, 0))
    put(store, "c", ["x/c:1"], squash)
    assert os.listdir(store.layout.trash) == []
    assert not os.path.lexists(squash_link(store, A))
    assert layout.image_layers(A, 1)[-1].id not in os.listdir(store.layout.overlay)


def test_an_image_in_the_trash_can_be_made_again(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    remove(store, squash)
    put(store, "a", ["x/a:1"], squash)
    assert Path(squash_link(store, A)).resolve() == Path(store.layout.squash(A))
    ((_, kept),) = store.in_trash()
    os.utime(kept, (0, 0))
    put(store, "c", ["x/c:1"], squash)
    assert os.listdir(store.layout.trash) == []
    assert_valid(store)
    assert shown(store) == {A: ["x/a:1"], image_id("c"): ["x/c:1"]}


def test_an_image_that_lost_its_names_stays(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/moved:1"], squash)
    put(store, "b", ["x/moved:1"], squash)
    assert shown(store) == {A: [], B: ["x/moved:1"]}
    records = json.loads(Path(store.layout.images_json).read_text())
    assert ["names" in record for record in records if record["id"] == A] == [False]


def test_each_publication_wakes_running_podmans(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    locks = [Path(store.layout.images_lock), Path(store.layout.layers_lock)]
    before = [(lock.read_bytes(), lock.stat().st_ino) for lock in locks]
    put(store, "a", ["x/a:1"], squash)
    after = [(lock.read_bytes(), lock.stat().st_ino) for lock in locks]
    assert [data for data, _ in before] != [data for data, _ in after]
    assert [inode for _, inode in before] == [inode for _, inode in after], "replaced: podman holds the old file"


def test_modes_do_not_depend_on_the_umask(root: str, squash: bytes) -> None:
    old = os.umask(0o077)
    try:
        store = open_store(root, create=True)
        put(store, "a", ["x/a:1"], squash)
    finally:
        os.umask(old)
    skip = ("staging", "capsules")
    for path in Path(root).rglob("*"):
        if not path.is_symlink() and not set(skip) & set(path.parts):
            expected = 0o755 if path.is_dir() else 0o644
            assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_group_writable_dir_gives_a_group_writable_store(root: str, squash: bytes) -> None:
    os.chmod(root, 0o2775)
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    assert stat.S_IMODE(os.stat(store.layout.names).st_mode) == 0o2775
    assert stat.S_IMODE(os.stat(store.layout.images_lock).st_mode) == 0o664


def test_the_derived_part_comes_back(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    Path(store.layout.images_json).write_text('[{"torn')
    Path(store.layout.layers_lock).unlink()
    Path(store.layout.link(layout.link_of(layout.image_layers(A, 1)[-1].id))).unlink()
    Path(store.layout.image(A), "manifest").unlink()
    open_store(root, create=True)
    verify.repair(store)
    assert_valid(store)
    assert shown(store) == {A: ["x/a:1"]}


def test_a_damaged_capsule_is_not_shown_and_can_be_made_again(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    with open(store.layout.squash(A), "r+b") as file:
        file.truncate(1000)
    assert A not in store.state().capsules
    put(store, "b", ["x/b:1"], squash)
    assert shown(store) == {B: ["x/b:1"]}
    put(store, "a", ["x/a:1"], squash)
    assert shown(store) == {A: ["x/a:1"], B: ["x/b:1"]}
    assert_valid(store)
    assert os.listdir(store.layout.trash) == []


def test_an_undone_change_leaves_nothing_in_the_trash(
    root: str, squash: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/moved:1"], squash)
    replace = atomic.replace_text

    def full(path: str, text: str, **more: int) -> None:
        if path.startswith(store.layout.names):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, text, **more)

    monkeypatch.setattr(atomic, "replace_text", full)
    with pytest.raises(OSError, match="No space"):
        put(store, "b", ["x/moved:1"], squash)
    monkeypatch.undo()
    assert shown(store) == {A: ["x/moved:1"]}
    assert os.listdir(store.layout.trash) == []


def test_a_moved_name_leaves_nothing_in_the_trash(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/moved:1"], squash)
    put(store, "b", ["x/moved:1"], squash)
    assert os.listdir(store.layout.trash) == []
    assert verify.verify(store) == ()


@pytest.mark.parametrize("name", ["image.squashfs", "capsule.json", "data", "name"])
def test_what_cannot_be_read_now_is_not_taken_away(
    name: str, root: str, squash: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One EIO, or a file somebody made unreadable, would unpublish the image for everybody."""
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    before = {path: path.lstat().st_mtime_ns for path in Path(root).rglob("*") if path.is_file()}
    bad = store.name_file("x/a:1") if name == "name" else os.path.join(store.layout.capsule(A), name)

    def broken(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(path: object, *arguments: object, **more: object) -> object:
            if isinstance(path, str) and path.startswith(bad):
                raise OSError(errno.EIO, "Input/output error", path)
            return call(path, *arguments, **more)

        return wrapper

    monkeypatch.setattr("builtins.open", broken(open))
    monkeypatch.setattr(os, "stat", broken(os.stat))
    monkeypatch.setattr(os, "open", broken(os.open))
    with pytest.raises(StoreError) as caught, explained(store.root):
        put(store, "b", ["x/b:1"], squash)
    assert "Input/output error" in caught.value.details
    with explained(store.root), pytest.raises((StoreError, OSError)), store.lock(doing="test") as held:
        publish.begin(store, held)
    monkeypatch.undo()
    assert shown(store) == {A: ["x/a:1"]}
    assert_valid(store)
    after = {path: path.lstat().st_mtime_ns for path in Path(root).rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    put(store, "b", ["x/b:1"], squash)
    assert shown(store) == {A: ["x/a:1"], B: ["x/b:1"]}


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    with store.lock(doing="test", name="image-living") as living:
        os.makedirs(os.path.join(store.layout.staging, living.holder.token))
        os.makedirs(os.path.join(store.layout.staging, "0123dead"))
        put(store, "a", ["x/a:1"], squash)
        assert os.listdir(store.layout.staging) == [living.holder.token]


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_nothing_is_written_through_what_is_no_lock_file(kind: str, root: str, squash: bytes, tmp_path: Path) -> None:
    """Who may write to a shared store must not choose which file of another writer gets 64 random bytes."""
    store = open_store(root, create=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    os.unlink(store.layout.images_lock)
    if kind == "link":
        os.symlink(victim, store.layout.images_lock)
    elif kind == "fifo":
        os.mkfifo(store.layout.images_lock)
    else:
        os.mkdir(store.layout.images_lock)
    with pytest.raises(StoreError, match="not a regular file"):
        put(store, "a", ["x/a:1"], squash)
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("precious", 0o600)


def test_the_marker_of_a_removal_is_never_an_existing_file(root: str, squash: bytes, tmp_path: Path) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    marker = os.path.join(store.layout.trash, f"{A}.withdrawn")
    with store.lock(doing="test") as held:
        state = publish.begin(store, held)
        os.symlink(victim, marker)
        with pytest.raises(FileExistsError):
            publish.remove_image(store, state, A, held)
    assert victim.read_text() == "precious"


def test_a_mig_that_begins_during_the_sweep_keeps_its_directory(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root, create=True)
    holders = lease.holders
    begun = os.path.join(store.layout.staging, "just-begun")

    def then_one_begins(directory: str) -> dict[str, lease.Holder]:
        found = holders(directory)
        os.mkdir(begun)
        return found

    monkeypatch.setattr(lease, "holders", then_one_begins)
    with store.lock(doing="test") as held:
        publish.collect(store, held)
    assert os.path.isdir(begun)


def test_verify_takes_nothing_of_a_living_writer_for_a_leftover(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/moved:1"], squash)
    found: list[tuple[verify.Finding, ...]] = []
    store.step = lambda name: found.append(verify.verify(open_store(root))) if name == "after name" else None
    put(store, "b", ["x/moved:1"], squash)
    assert not [finding for finding in found[0] if "left over" in finding.what]


def test_names_with_every_character(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    names = ["reg:5000/a/b:1", "a@sha256:" + "0" * 64, "x/" + "long/" * 60 + "name:1", "%2F:1"]
    put(store, "a", names, squash)
    assert shown(store) == {A: sorted(names)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (["overlay/l/X.squash", "overlay-images/images.json"], "podman-hpc"),
        (["squash/X.squash", "overlay/l/X.squash"], "parallax"),
        (["overlay-images/images.json"], "container store made by another program"),
        (["notes.txt"], "not empty and not a store"),
    ],
)
def test_foreign_directories_are_refused(root: str, make: list[str], message: str) -> None:
    for name in make:
        Path(root, name).parent.mkdir(parents=True, exist_ok=True)
        Path(root, name).touch()
    before = sorted(Path(root).rglob("*"))
    with pytest.raises(StoreError, match=message):
        open_store(root, create=True)
    assert sorted(Path(root).rglob("*")) == before


def test_other_reasons_to_refuse(root: str) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        open_store(root + "/no")
    with pytest.raises(StoreError, match="is empty"):
        open_store(root)
    Path(root, "file").touch()
    with pytest.raises(StoreError, match="is not a directory"):
        open_store(root + "/file")
    Path(root, "file").unlink()
    store = open_store(root, create=True)
    Path(store.layout.version).write_text("2\n")
    with pytest.raises(StoreError, match="format 2"):
        open_store(root)


@pytest.mark.parametrize("failing", ["_show_layers", "_show_data", "_drop_extras", "touch_lock"])
def test_a_full_file_system_is_named_and_changes_nothing(
    failing: str, root: str, squash: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/moved:1", "x/a:1"], squash)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publish, failing, full)
    with pytest.raises(SpaceError, match=r"(?s)No space left in .*prune --now"), explained(store.root):
        add(store, squash)
    monkeypatch.undo()
    assert store.state().names == {"x/moved:1": A, "x/a:1": A}
    assert_valid(store)
    put(store, "c", ["x/c:1"], squash)
    assert shown(store) == BEFORE | {image_id("c"): ["x/c:1"]}
    assert_valid(store)


def test_a_writer_that_lost_the_lock_undoes_nothing(root: str, squash: bytes) -> None:
    """The new holder has finished the publication: taking its capsule away would leave an image that cannot run."""
    store = open_store(root, create=True)
    put(store, "a", ["x/moved:1", "x/a:1"], squash)
    seen: list[str] = []

    def taken_over(name: str) -> None:
        seen.append(name)
        if seen.count("after name") == 1 and name == "after name":
            os.unlink(os.path.join(store.layout.lock, "store"))
            put(open_store(root), "c", ["x/c:1"], squash)

    store.step = taken_over
    with pytest.raises(BusyError, match="took over"):
        add(store, squash)
    assert shown(store) == AFTER_ADD | {image_id("c"): ["x/c:1"]}
    assert_valid(store)
    assert seen[-1] == "after name", "nothing was written after the lock was lost"


def test_a_change_leaves_the_files_of_other_images_alone(
    root: str, squash: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 images of 15 layers made 20,000 system calls of one publication, each a request to a metadata server."""
    store = open_store(root, create=True)
    for name in "abc":
        put(store, name, [f"x/{name}:1"], squash)
    seen: list[str] = []

    def noted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(path: object, *arguments: object, **more: object) -> object:
            seen.append(str(path))
            return call(path, *arguments, **more)

        return wrapper

    for name in ("mkdir", "lstat", "stat", "readlink", "chmod", "rename"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    monkeypatch.setattr("builtins.open", noted(open))
    states = []
    monkeypatch.setattr(Store, "state", lambda store, state=Store.state: states.append(1) or state(store))
    put(store, "d", ["x/d:1"], squash)
    others = [store.layout.overlay, store.layout.images]
    mine = (
        layout.image_layers(image_id("d"), 1)[0].id,
        image_id("d"),
        layout.link_of(layout.image_layers(image_id("d"), 1)[0].id),
    )
    files = (".json", ".lock")
    touched = [path for path in seen if path.startswith(tuple(others)) and not any(each in path for each in mine)]
    assert [path for path in touched if not path.endswith(files) and ".tmp-" not in path] == []
    assert len(states) == 1
    assert_valid(store)


def test_a_missing_file_of_another_image_comes_back(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    os.unlink(squash_link(store, A))
    put(store, "b", ["x/b:1"], squash)
    assert_valid(store)


@pytest.mark.parametrize(
    ("number", "path", "kind", "message"),
    [
        (errno.ENOSPC, None, SpaceError, "No space left in /store."),
        (errno.ENOSPC, "/store/squashmount/x", SpaceError, "No space left in /store."),
        (errno.ENOSPC, "/tmp/t/x", SpaceError, "No space left in /tmp/t."),
        (errno.EACCES, "/store/x", SpaceError, "/store is not writable for you."),
        (errno.EACCES, "/graph/overlay-images/x", SquashmountError, "no access to /graph/overlay-images."),
        (errno.EACCES, "/storefront/x", SquashmountError, "no access to /storefront."),
        (errno.EIO, "/store/x", StoreError, "trouble in /store."),
        (errno.EIO, "/graph/x", SquashmountError, "trouble in /graph."),
    ],
)
def test_the_blame_goes_to_the_right_place(
    number: int, path: str | None, kind: type[SquashmountError], message: str
) -> None:
    with pytest.raises(SquashmountError, match=re.escape(message)) as caught, explained("/store"):
        raise OSError(number, os.strerror(number), path)
    assert type(caught.value) is kind


def test_an_unfinished_init_can_be_finished(root: str) -> None:
    os.makedirs(os.path.join(root, "squashmount", "capsules"))
    assert_valid(open_store(root, create=True))


def test_a_published_capsule_holds_nothing_else(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    assert sorted(os.listdir(store.layout.capsule(A))) == ["capsule.json", "data", "image.squashfs"]


def test_a_profile_is_replaced_checked_and_goes_with_its_image(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    for _ in range(2):
        profile(store, squash)
        with open(store.layout.profile(A), "rb") as file:
            assert parse(file.read(), where="x") == PROFILE
        assert verify.verify(store) == ()
    with open(store.layout.profile(A), "w", encoding="ascii") as torn:
        torn.write('{"format": 1,')
    (finding,) = verify.verify(store)
    assert not finding.serious
    assert "profile" in finding.where
    assert "profile" in finding.fix
    assert_valid(store)
    remove(store, squash)
    assert not os.path.exists(store.layout.profile(A))
    assert sorted(os.listdir(store.in_trash()[0][1])) == ["capsule.json", "data", "image.squashfs", "profile.json"]


def resquash(store: Store, squash: bytes) -> None:
    """What `mig --profile` does with an image that is there: another file of the same content."""
    with store.lock(doing="test", name=f"image-{A}") as mine:
        one, directory = staged(store, "a", squash=squash + bytes(4096), token=mine.holder.token)
        one = dataclasses.replace(one, file="image-0123.squashfs", order="0123")
        os.rename(os.path.join(directory, "image.squashfs"), os.path.join(directory, one.file))
        Path(directory, "capsule.json").write_text(one.to_json())
        with store.lock(doing="test") as held:
            publish.replace_squash(store, publish.begin(store, held), one, directory, held)
        shutil.rmtree(directory)


@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("grace", [0, DAY])
def test_another_squash_file_for_an_image_under_kills(grace: float, tmp_path: Path, squash: bytes) -> None:
    """At every instant there is a file to run from, and the next writer ends what was begun."""
    (tmp_path / "count").mkdir()
    steps = steps_of(resquash, str(tmp_path / "count"), squash)
    assert {"before squash", "after squash", "after capsule.json", "after retiring"} <= set(steps)
    files = set()
    for number in range(1, len(steps) + 1):
        root = str(tmp_path / f"DIR{number}")
        os.mkdir(root)
        store = open_store(root, create=True, grace=grace)
        put(store, "a", ["x/moved:1", "x/a:1"], squash)
        profile(store, squash)
        killed_at(number, resquash, root, squash, grace=grace)
        assert_valid(store)
        assert shown(store) == BEFORE
        put(store, "c", ["x/c:1"], squash)
        assert_valid(store)
        one = store.state().capsules[A]
        files.add(one.file)
        rest = {"capsule.json", "data", "profile.json"}
        assert set(os.listdir(store.layout.capsule(A))) == rest | {one.file}, f"after {steps[number - 1]}"
        assert os.path.realpath(squash_link(store, A)) == os.path.realpath(store.layout.squash(A, one.file))
        assert verify.verify(store, full=True) == ()
        assert os.listdir(store.layout.staging) == []
        assert len(os.listdir(store.layout.trash)) <= (1 if grace else 0)
    assert files == {"image.squashfs", "image-0123.squashfs"}


def test_the_file_that_was_replaced_stays_for_its_containers(root: str, squash: bytes) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    before = os.stat(store.layout.squash(A)).st_ino
    resquash(store, squash)
    assert os.stat(squash_link(store, A)).st_size == len(squash) + 4096
    ((image, kept),) = store.in_trash()
    assert image == A
    assert os.stat(os.path.join(kept, "image.squashfs")).st_ino == before
    with store.lock(doing="test") as held:
        publish.refresh(store, publish.begin(store, held), held)
    assert os.path.realpath(squash_link(store, A)).startswith(store.layout.capsules), "not the one in the trash"
    remove(store, squash)
    assert os.stat(squash_link(store, A)).st_size == len(squash) + 4096, "a container can be started again"
    with store.lock(doing="test") as held:
        publish.empty_trash(store)
        publish.refresh(store, publish.begin(store, held), held)
    assert os.listdir(store.layout.trash) == os.listdir(store.layout.links) == []


@pytest.mark.parametrize("file", ["../x.squashfs", "image/../../x.squashfs", "capsule.json", ""])
def test_a_capsule_names_no_file_but_its_own(root: str, squash: bytes, file: str) -> None:
    store = open_store(root, create=True)
    put(store, "a", ["x/a:1"], squash)
    value = json.loads(Path(store.layout.capsule_json(A)).read_text())
    Path(store.layout.capsule_json(A)).write_text(json.dumps(value | {"file": file}))
    assert store.state().capsules == {}
    assert verify.verify(store)


@pytest.mark.filterwarnings("ignore:This process")
def test_a_publication_that_died_half_way_does_not_count_as_shown(tmp_path: Path, squash: bytes) -> None:
    """`mig` is a no-op only when Podman sees what the capsules and names say."""
    (tmp_path / "count").mkdir()
    steps = steps_of(add, str(tmp_path / "count"), squash)
    unseen = []
    for number, name in enumerate(steps, 1):
        root = str(tmp_path / f"DIR{number}")
        os.mkdir(root)
        put(open_store(root, create=True), "a", ["x/moved:1", "x/a:1"], squash)
        killed_at(number, add, root, squash)
        store = open_store(root)
        state = store.state()
        seen = publish.is_shown(store, state)
        assert not seen or shown(store) == {image: list(state.names_of(image)) for image in state.capsules}
        if B in state.capsules and not seen:
            unseen.append(name)
        with store.lock(doing="test") as held:
            publish.refresh(store, publish.begin(store, held), held)
        assert publish.is_shown(store, store.state())
    assert "after capsule" in unseen
    assert "after layers.json" in unseen
