"""The README's first command works, as root and as an ordinary user, and leaves nothing behind."""

from pathlib import Path

import pytest
from lab import TOP, User, copy_checkout, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


def test_as_root() -> None:
    before = set(Path("/var/tmp").iterdir())
    done = run(str(TOP / "scripts/demo"), timeout=300)
    assert "It works" in done.ok(), done.err
    assert "the same files, and I am uid" in done.out
    assert {path for path in set(Path("/var/tmp").iterdir()) - before if "squashmount" in path.name} == set()


def test_as_an_ordinary_user(lab: Path, alice: User) -> None:
    copy = lab / "checkout"
    copy_checkout(copy, "pyproject.toml", "README.md", "scripts", "squashmount", "migrate", "oci_hooks", "storage_conf")
    runtime = Path(f"/run/user/{alice.uid}/demo")
    alice.run("mkdir", "-m", "700", str(runtime)).ok()
    env = {"XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(alice.home)}
    done = alice.run(str(copy / "scripts/demo"), env=env, timeout=300)
    assert "It works" in done.ok(), done.err
    assert not list(alice.home.glob("squashmount-demo.*"))
