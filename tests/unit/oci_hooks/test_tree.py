"""Both trees, on the same hostile image: whatever its links say, nothing beyond the root is reached."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from squash_images import mksquash
from squashmount.oci_hooks import tree as trees
from squashmount.oci_hooks.tree import DirectoryTree, SquashTree, Target, Tree

from squashmount.errors import HostError
from squashmount.squashfs.image import SquashImage


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose links want out in every way; beside it what they must not reach."""
    base = tmp_path_factory.mktemp("hostile")
    (base / "secret").write_text("of the host")
    root = base / "root"
    for name in ("usr/lib", "etc", "outside/deep"):
        (root / name).mkdir(parents=True)
    (root / "usr/lib/libm.so.1.2").write_text("library")
    (root / "usr/lib/libm.so.1").symlink_to("libm.so.1.2")
    (root / "lib").symlink_to("usr/lib")
    (root / "etc/absolute").symlink_to(base / "secret")
    (root / "etc/relative").symlink_to("../../../../../../../../" + str(base / "secret"))
    (root / "etc/up").symlink_to("../../../..")
    (root / "etc/passwd").symlink_to("/outside/passwd")
    (root / "etc/dangling").symlink_to("/outside/new/place")
    (root / "etc/circle").symlink_to("circle")
    (root / "etc/magic").symlink_to("/proc/self/root/etc/hostname")
    (root / "outside/passwd").write_text("inside")
    os.mkfifo(root / "etc/fifo")
    (root / "etc/two\nlines").write_text("odd")
    (root / os.fsdecode(b"etc/not-\xff-utf8")).write_text("bytes")
    return base


@pytest.fixture(params=["openat2", "steps", "squash"])
def tree(request: pytest.FixtureRequest, top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    if request.param == "squash":
        squash = top / "image.squashfs"
        if not squash.exists():
            mksquash(top / "root", squash)
        with SquashImage.open(str(squash)) as image:
            yield SquashTree(image)
        return
    if request.param == "steps":
        monkeypatch.setattr(trees, "_openat2", lambda *_: None)  # as a kernel before 5.6
    with DirectoryTree(str(top / "root")) as directory:
        yield directory


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/lib/libm.so.1", "/usr/lib/libm.so.1.2"),
        ("/", "/"),
        ("/../..//lib/./libm.so.1.2", "/usr/lib/libm.so.1.2"),
        ("/etc/up/etc/up/usr", "/usr"),
        ("/etc/passwd", "/outside/passwd"),
        ("/etc/two\nlines", "/etc/two\nlines"),
        (os.fsdecode(b"/etc/not-\xff-utf8"), os.fsdecode(b"/etc/not-\xff-utf8")),
        ("/etc/absolute", None),
        ("/etc/relative", None),
        ("/etc/dangling", None),
        ("/etc/circle", None),
        ("/etc/magic", None),
        ("/usr/lib/libm.so.1/below-a-file", None),
        ("/etc/nothing", None),
    ],
)
def test_resolves_as_inside_the_container(tree: Tree, path: str, real: str | None) -> None:
    assert tree.resolve(path) == real
    assert (tree.trouble(path) == "") is (real is not None)


def test_target_is_where_something_new_would_lie(tree: Tree, top: Path) -> None:
    assert tree.target("/lib/new/dir") == Target("/usr/lib/new/dir", "")
    assert tree.target("/etc/dangling") == Target("/outside/new/place", "", dangling=True)
    assert tree.target("/lib") == Target("/usr/lib", "dir")
    # the host's own path, but inside
    assert tree.target("/etc/absolute") == Target(f"{top}/secret", "", dangling=True)
    assert tree.target("/etc/relative") == Target(f"{top}/secret", "", dangling=True)
    with pytest.raises(OSError, match="symbolic links"):
        tree.target("/etc/circle/x")
    with pytest.raises(NotADirectoryError):
        tree.target("/usr/lib/libm.so.1/x")


def test_only_regular_files_are_opened(tree: Tree) -> None:
    with tree.open("/lib/libm.so.1") as file:
        assert file.read() == b"library"
        file.seek(3)
        assert file.read(2) == b"ra"
    for path in ("/etc/fifo", "/etc", "/etc/absolute", "/etc/circle", "/etc/magic"):
        with pytest.raises(OSError, match=r".+"):
            tree.open(path)
    assert tree.size("/lib/libm.so.1") == 7
    with pytest.raises(OSError, match="not a regular file"):
        tree.size("/etc")


def test_kinds_and_listings(tree: Tree) -> None:
    assert [tree.kind(path) for path in ("/lib", "/lib/libm.so.1", "/etc/fifo", "/etc/circle", "/none")] == [
        "dir",
        "file",
        "other",
        "",
        "",
    ]
    assert tree.listdir("/lib") == ["libm.so.1", "libm.so.1.2"]
    assert "two\nlines" in tree.listdir("/etc")
    with pytest.raises(OSError, match=r".+"):
        tree.listdir("/none")


def test_trouble_says_where_a_link_leads(tree: Tree) -> None:
    assert tree.trouble("/etc/dangling") == "leads to '/outside/new/place', which does not exist"
    assert tree.trouble("/etc/nothing") == "does not exist"


@pytest.mark.parametrize("how", ["openat2", "steps"])
def test_new_files_are_made_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "steps":
        monkeypatch.setattr(trees, "_openat2", lambda *_: None)
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to("/../..")
    with DirectoryTree(str(root)) as tree:
        os.close(tree.open_fd("/out/made", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with pytest.raises(FileExistsError):
            tree.open_fd("/out/made", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    assert (root / "made").exists()
    assert not (tmp_path / "made").exists()


def test_a_root_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="root file system"):
        DirectoryTree(str(tmp_path / "none"))
