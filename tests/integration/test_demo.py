"""The README's first command works, as root and as an ordinary user, and leaves nothing behind."""

import os
from pathlib import Path

import pytest
from lab import TOP, User, copy_checkout, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


def test_as_root(lab: Path) -> None:
    top = lab / "demo-labs"
    top.mkdir()
    done = run(str(TOP / "scripts/demo"), env={**os.environ, "SQUASHMOUNT_LAB_TOP": str(top)}, timeout=300)
    assert "It works" in done.ok(), done.err
    assert "the same files, and I am uid" in done.out
    assert list(top.iterdir()) == []


def test_as_an_ordinary_user(lab: Path, alice: User) -> None:
    copy = lab / "checkout"
    copy_checkout(copy, "pyproject.toml", "README.md", "scripts", "squashmount", "migrate", "oci_hooks", "storage_conf")
    runtime = Path(f"/run/user/{alice.uid}/demo")
    alice.run("mkdir", "-m", "700", str(runtime)).ok()
    env = {"XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(alice.home)}
    done = alice.run(str(copy / "scripts/demo"), env=env, timeout=300)
    assert "It works" in done.ok(), done.err
    assert not list(alice.home.glob("squashmount-demo.*"))
