"""One squash file, five readers: our two engines, squashfuse, the kernel and PySquashfsImage show what was packed.

Also what only the engine pyfuse3 must prove: that it detaches, reports, ends, and survives a damaged file.
"""

import hashlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lab import TOP, Done, User, run, wait_for
from PySquashfsImage import SquashFsImage
from PySquashfsImage.file import File
from snapshot import KINDS
from squash_images import in_a_circle, make_tree, mksquash

from squashmount.mountinfo import read_mounts
from squashmount.server.index_writer import append_index

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

Tree = dict[str, dict[str, Any]]

# pyfuse3 has no binary packages: the installed product is lent the one that was compiled for the tests
LENT = ("pyfuse3", "trio", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna")
needs_pyfuse3 = pytest.mark.skipif(find_spec("pyfuse3") is None, reason="needs pyfuse3: pip install -e '.[pyfuse3]'")


@pytest.fixture(scope="module")
def lent(lab: Path) -> Path:
    """A folder for PYTHONPATH with pyfuse3 in it."""
    folder = lab / "lent"
    folder.mkdir()
    for name in LENT:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            shutil.copytree(Path(spec.origin).parent, folder / name)
    return folder


@pytest.fixture(scope="module")
def place(lab: Path) -> Path:
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp(dir=lab))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def packed(place: Path) -> Path:
    """What is packed: everything odd of an image, devices, and the sizes around block boundaries."""
    tree = place / "tree"
    run(sys.executable, str(TOP / "tests/odd_tree.py"), str(tree)).ok()
    (tree / "sizes").mkdir()
    make_tree(tree / "sizes")
    return tree


@pytest.fixture(scope="module")
def squash(packed: Path) -> Path:
    """With a listing index, as `mig` makes it: no reader may mind."""
    path = mksquash(packed, packed.parent / "image", "-comp", "zstd", "-Xcompression-level", "3")
    assert append_index(path) > 0
    return Path(path)


def snapshot(tree: Path) -> Tree:
    found: Tree = json.loads(run(sys.executable, str(TOP / "tests/snapshot.py"), str(tree)).ok())
    return found


def is_mounted(path: Path) -> bool:
    return any(mount.target == str(path) for mount in read_mounts())


Command = Callable[..., Done]


@pytest.fixture
def command(product: Path, lent: Path, root: User) -> Command:
    """`squashmount ARG...` as a user (root, if none is named)."""

    def call(*argv: str, user: User | None = None) -> Done:
        program = str(product / "bin/squashmount")
        return (user or root).run(program, *argv, env={"PYTHONPATH": str(lent)}, timeout=20)

    return call


@contextmanager
def shown_by(reader: str, squash: Path, target: Path, command: Command) -> Iterator[None]:
    """Mount with one of the readers; end whatever serves afterwards."""
    target.mkdir()
    if reader == "kernel":
        run("mount", "-t", "squashfs", "-o", "loop,ro", str(squash), str(target)).ok()
    elif reader == "squashfuse_ll":
        run("squashfuse_ll", "-o", "allow_other", str(squash), str(target)).ok()
    else:
        command("mount", "--engine", reader, str(squash), str(target)).ok()
    try:
        assert is_mounted(target)
        yield
    finally:
        run("umount", "-l", str(target))
        target.rmdir()
        wait_for(lambda: _servers(target) == [], "the server ends")


@needs_pyfuse3
@pytest.mark.parametrize("compressor", ["gzip", "xz", "zstd"])
def test_every_reader_shows_the_packed_tree(
    packed: Path, place: Path, command: Command, capsys: pytest.CaptureFixture[str], compressor: str
) -> None:
    squash = Path(mksquash(packed, place / f"{compressor}.squashfs", "-comp", compressor))
    expected = snapshot(packed)
    readers = ["wire", "pyfuse3", "squashfuse_ll"]
    if lacking := _lacks_kernel_reader():
        with capsys.disabled():
            print(f"\nleft out: the kernel's own squashfs ({lacking})")
    else:
        readers.append("kernel")
    found = {}
    for reader in readers:
        with shown_by(reader, squash, place / reader, command):
            found[reader] = snapshot(place / reader)
    # squashfuse 0.1.105 hides security.*, 0.5.2 does not (see test_tree_equality)
    assert found["squashfuse_ll"]["./capable"].pop("xattrs") in ({}, expected["./capable"]["xattrs"])
    found["squashfuse_ll"]["./capable"]["xattrs"] = expected["./capable"]["xattrs"]
    assert expected["./capable"]["xattrs"].keys() == {"security.capability"}
    assert expected["./sizes/deep/disk"]["device"] == [259, 70_000]
    assert len(expected) > 3000
    for reader, tree in found.items():
        assert _differences(expected, tree) == [], reader
    without_xattrs = {path: {k: v for k, v in entry.items() if k != "xattrs"} for path, entry in expected.items()}
    assert _differences(without_xattrs, independent_snapshot(squash)) == []


def _differences(expected: Tree, found: Tree) -> list[str]:
    """Return the first ten."""
    pairs = {path: (expected.get(path), found.get(path)) for path in expected.keys() | found.keys()}
    return [f"{path}: {pair}" for path, pair in sorted(pairs.items()) if pair[0] != pair[1]][:10]


def independent_snapshot(squash: Path) -> Tree:
    """What PySquashfsImage reads, which shares no code with any of the others; it knows no values of attributes.

    It decodes names as UTF-8 and dies of others (0.9.0): it is lent the decoding of snapshot.py.
    """
    with pytest.MonkeyPatch.context() as patch, squash.open("rb") as opened:
        patch.setattr(File, "name", property(lambda file: file._name.decode("latin-1")))
        image = SquashFsImage(opened)
        found: Tree = {}
        first: dict[int, str] = {}
        for file in image:
            path = "." + file.path.rstrip("/")
            found[path] = _independent_entry(file, path, first)
        return found


def _independent_entry(file: Any, path: str, first: dict[int, str]) -> dict[str, Any]:
    kind = stat.S_IFMT(file.mode)
    entry: dict[str, Any] = {
        "kind": KINDS.get(kind, oct(file.mode)),
        "mode": oct(stat.S_IMODE(file.mode)),
        "owner": [file.uid, file.gid],
        "mtime": file.time,
    }
    if file.is_symlink:
        entry["target"] = file.readlink().encode().decode("latin-1")
    if file.is_block_device or file.is_char_device:
        entry["device"] = [file.major, file.minor]
    if file.is_file:
        digest = hashlib.sha256()
        for piece in file.iter_bytes():
            digest.update(piece)
        # a basic file inode has no count of links: it has one (squashfs format, "basic file")
        links = getattr(file.inode, "nlink", 1)
        entry |= {"size": file.size, "links": links, "sha256": digest.hexdigest()}
        if links > 1:
            entry["same_as"] = first.setdefault(file.inode.inode_number, path)
    return entry


def _lacks_kernel_reader() -> str:
    if "\tsquashfs\n" not in Path("/proc/filesystems").read_text():
        return "this kernel has no squashfs"
    free = run("losetup", "--find")
    return free.err.strip() if free.code else ""


@needs_pyfuse3
def test_listings_and_single_calls_agree(squash: Path, place: Path, command: Command) -> None:
    answers = {}
    for engine in ("wire", "pyfuse3"):
        target = place / f"calls-{engine}"
        with shown_by(engine, squash, target, command):
            for folder in (target, target / "many", target / "sizes/deep"):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        assert entry.inode() == entry.stat(follow_symlinks=False).st_ino, entry.path
            answers[engine] = _calls(target)
    assert answers["pyfuse3"] == answers["wire"]
    assert answers["wire"]["absent"] == answers["wire"]["absent again"] == "[Errno 2]"
    assert answers["wire"]["dots"] == "['.', '..', 'becomes-dir']"


def _calls(target: Path) -> dict[str, str]:
    def listed_with_dots() -> list[str]:
        return run("ls", "-fa", str(target)).ok().split("\n")

    file = str(target / "hard1")
    calls: dict[str, Callable[[], object]] = {
        "absent": lambda: os.stat(target / "none"),
        "absent again": lambda: os.stat(target / "none"),
        "not a directory": lambda: os.stat(f"{file}/x"),
        "long name": lambda: os.stat(target / ("n" * 300)),
        "write": lambda: os.open(file, os.O_WRONLY),
        "unlink": lambda: os.unlink(file),
        "no attribute": lambda: os.getxattr(file, "user.none"),
        "no attributes": lambda: os.listxattr(file),
        "attribute": lambda: os.getxattr(target / "owned", "user.note"),
        "long attribute": lambda: len(os.getxattr(target / "noise", "user.long")),
        "end": lambda: run("tail", "-c", "6", str(target / "sparse")).ok(),
        "up": lambda: sorted(os.listdir(target / "sizes/deep/a/../../../sub")),
        "dots": lambda: sorted(name for name in listed_with_dots() if name in {".", "..", "becomes-dir"}),
        "statvfs": lambda: os.statvfs(target)[:10],
        "times": lambda: os.lstat(target / "many")[6:10],
        "links and blocks": lambda: run("stat", "-c", "%h %b %B %t %T", str(target / "sizes/deep/disk"), file).ok(),
    }
    found = {}
    for name, call in calls.items():
        try:
            found[name] = str(call())
        except OSError as err:
            found[name] = f"[Errno {err.errno}]"
    return found


@needs_pyfuse3
@pytest.mark.parametrize("name", ["root", "alice"])
def test_it_detaches_and_ends_with_the_mount(
    request: pytest.FixtureRequest, squash: Path, place: Path, command: Command, name: str
) -> None:
    user: User = request.getfixturevalue(name)
    target = place / "mine" if name == "root" else user.home / "mine"
    user.run("mkdir", str(target)).ok()
    started = time.monotonic()
    command("mount", "--engine", "pyfuse3", str(squash), str(target), user=user).ok()
    assert time.monotonic() - started < 15
    assert user.run("cat", str(target / "hard2")).ok() == "linked"
    assert (user.run("cat", str(target / "unreadable")).code == 0) == (name == "root")
    [server] = _servers(target)
    assert os.readlink(f"/proc/{server}/cwd") == "/"
    assert os.getsid(server) == server, "a session of its own: no terminal's signals reach it"
    assert {os.readlink(f"/proc/{server}/fd/{number}") for number in (0, 1, 2)} == {"/dev/null"}
    command("umount", str(target), user=user).ok()
    wait_for(lambda: _servers(target) == [], "the server ends")
    target.rmdir()


def _servers(target: Path) -> list[int]:
    return [int(pid) for pid in run("pgrep", "-f", f"squash.* {target}$").out.split()]


@needs_pyfuse3
def test_a_killed_server_is_an_error_and_not_a_hang(squash: Path, place: Path, command: Command) -> None:
    target = place / "killed"
    with shown_by("pyfuse3", squash, target, command):
        [server] = _servers(target)
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: run("ls", str(target / "many"), timeout=10).code != 0, "an error", 10)


@needs_pyfuse3
@pytest.mark.parametrize("engine", ["wire", "pyfuse3"])
def test_a_damaged_inode_is_one_name_that_fails(place: Path, command: Command, engine: str) -> None:
    tree = place / f"whole-{engine}"
    tree.mkdir()
    for name in ("first", "second", "third"):
        (tree / name).write_text(name)
    # uncompressed inodes, that is: the type of one can be changed where it lies (a fifo has an mtime nobody else has)
    os.mkfifo(tree / "damaged")
    os.utime(tree / "damaged", (1, 0x5EADBEEF))
    file = Path(mksquash(tree, place / f"damaged-{engine}", "-noI", "-noId"))
    data = bytearray(file.read_bytes())
    at = data.index((0x5EADBEEF).to_bytes(4, "little")) - 8
    assert data[at] == 6, "a basic fifo (squashfs format, inode types)"
    data[at] = 99
    file.write_bytes(data)
    target = place / f"partly-{engine}"
    with shown_by(engine, file, target, command):
        assert sorted(os.listdir(target)) == ["damaged", "first", "second", "third"]
        with pytest.raises(OSError, match=r"Errno 5"):
            os.lstat(target / "damaged")
        assert [(target / name).read_text() for name in ("first", "second", "third")] == ["first", "second", "third"]
        assert stat.S_ISDIR(os.stat(target).st_mode)


@needs_pyfuse3
@pytest.mark.parametrize("engine", ["wire", "pyfuse3"])
def test_a_directory_in_its_own_subdirectory_does_not_make_a_walk_endless(
    place: Path, command: Command, engine: str
) -> None:
    """The kernel refuses a directory that is its own ancestor (fs/dcache.c, d_splice_alias), if node ids tell it so."""
    tree = place / f"straight-{engine}"
    (tree / "outer/inner").mkdir(parents=True)
    (tree / "outer/inner/file").write_text("file")
    (tree / "outer/last").write_text("last")
    straight = Path(mksquash(tree, place / f"straight-{engine}.squashfs", "-noI", "-noId"))
    file = place / f"circle-{engine}.squashfs"
    file.write_bytes(in_a_circle(straight.read_bytes(), b"outer", b"outer/inner/file"))
    target = place / f"circle-{engine}"
    with shown_by(engine, file, target, command):
        walked = run("find", str(target), "-printf", "%P\\n", timeout=20)
        assert walked.code != 0
        assert {"outer", "outer/inner", "outer/last"} <= set(walked.out.split())
        assert len(walked.out.split()) < 10
        assert (target / "outer/last").read_text() == "last"


def test_a_missing_package_is_explained(product: Path, squash: Path, place: Path, root: User) -> None:
    target = place / "nothing"
    target.mkdir()
    argv = (str(product / "bin/squashmount"), "mount", "--engine", "pyfuse3", str(squash), str(target))
    done = root.run(*argv, timeout=20)
    assert done.code == 8
    assert "pip install 'squashmount[pyfuse3]'" in done.err
    assert "Traceback" not in done.err
    assert not is_mounted(target)
