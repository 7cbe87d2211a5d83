"""`squashmount mount FILE DIR`: any squash file, as root and as an ordinary user."""

import tempfile
from pathlib import Path

import pytest
from lab import Done, User, run, wait_for

from squashmount.mountinfo import read_mounts

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


@pytest.fixture
def squash(lab: Path) -> Path:
    base = Path(tempfile.mkdtemp(dir=lab))
    base.chmod(0o755)
    tree = base / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    (tree / "private").write_text("root only")
    (tree / "private").chmod(0o600)
    file = base / "any.squashfs"
    run("mksquashfs", str(tree), str(file), "-comp", "gzip", "-quiet").ok()
    return file


def is_mounted(path: Path) -> bool:
    return any(mount.target == str(path) for mount in read_mounts())


@pytest.fixture(params=["root", "alice"])
def user(request: pytest.FixtureRequest) -> User:
    found: User = request.getfixturevalue(request.param)
    return found


def command(product: Path, user: User, *argv: str) -> Done:
    return user.run(str(product / "bin/squashmount"), *argv, timeout=20)


def test_mount_read_unmount(product: Path, user: User, squash: Path, lab: Path) -> None:
    directory = (lab / "mounted-by-root") if user.uid == 0 else user.home / "mounted"
    user.run("mkdir", str(directory)).ok()
    command(product, user, "mount", str(squash), str(directory)).ok()
    assert is_mounted(directory)
    assert user.run("cat", str(directory / "file")).ok() == "content"
    assert (user.run("cat", str(directory / "private")).code == 0) == (user.uid == 0)
    assert user.run("touch", str(directory / "new")).code != 0
    listed = command(product, user, "ps").ok() if user.uid == 0 else ""
    assert (str(squash) in listed) == (user.uid == 0)
    again = command(product, user, "mount", str(squash), str(directory))
    assert again.code == 2
    assert "already" in again.err
    command(product, user, "umount", str(directory)).ok()
    assert not is_mounted(directory)
    wait_for(lambda: run("pgrep", "-f", f"squashmount mount {squash}").code == 1, "the server ends")
    directory.rmdir()


@pytest.mark.parametrize(
    ("file", "directory", "code", "says"),
    [
        ("missing", "", 2, "does not exist"),
        ("tree/file", "", 10, "squash file"),
        ("any.squashfs", "nowhere", 2, "not a directory"),
    ],
)
def test_mistakes_are_explained(
    product: Path, root: User, squash: Path, file: str, directory: str, code: int, says: str
) -> None:
    target = squash.parent / (directory or "target")
    (squash.parent / "target").mkdir()
    done = command(product, root, "mount", str(squash.parent / file), str(target))
    assert done.code == code, done
    assert says in done.err
    assert "Traceback" not in done.err
    assert not is_mounted(squash.parent / "target")


def test_umount_of_what_is_not_mounted(product: Path, root: User, squash: Path) -> None:
    done = command(product, root, "umount", str(squash.parent))
    assert (done.code, "Nothing is mounted" in done.err) == (2, True)
