"""Node-local staging: containers start from the shared file and go on from a verified copy that leaves nothing."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Node, User, run, wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


@pytest.fixture
def squash(login: Node, store: Path, debian: str, lab: Path, alice: User) -> Iterator[Path]:
    """The squash file of `debian` in a copy of the store, which a test may damage."""
    image = login.podman("image", "inspect", "--format", "{{.Id}}", debian).ok()
    copy = Path(tempfile.mkdtemp(dir=lab))
    run("cp", "-a", f"{store}/.", str(copy)).ok()
    run("chown", f"{alice.uid}:{alice.gid}", str(copy)).ok()
    yield copy / f"squashmount/capsules/{image}/image.squashfs"
    shutil.rmtree(copy)


@pytest.fixture
def local(lab: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(dir=lab))
    directory.chmod(0o1777)
    yield directory
    assert not list(directory.iterdir()), "a copy has a name"
    directory.rmdir()


@pytest.fixture
def node(make_node: Callable[..., Node], alice: User, squash: Path, local: Path) -> Node:
    node = make_node(alice, stores=(squash.parents[3],))
    node.env |= {"SQUASHMOUNT_STAGE_DIR": str(local), "SQUASHMOUNT_LOG_LEVEL": "info"}
    return node


def start(node: Node, image: str) -> None:
    node.podman("run", "-d", "--name", "kept", image, "sleep", "600").ok()
    # in the page cache before anything is damaged: a missing page of a program would be SIGBUS
    node.podman("exec", "kept", "sha256sum", "/etc/passwd").ok()


def cut(squash: Path) -> None:
    squash.chmod(0o644)
    os.truncate(squash, 4096)


def test_the_copy_serves_when_the_shared_file_does_not(node: Node, debian: str, squash: Path, local: Path) -> None:
    start(node, debian)
    wait_for(lambda: "staged: " in node.log(), "the copy is complete")
    inside = [os.stat(f"/proc/{pid}/fd/{fd}") for pid in node.servers() for fd in os.listdir(f"/proc/{pid}/fd")]
    assert any(info.st_dev == local.stat().st_dev and info.st_nlink == 0 for info in inside)
    cut(squash)
    assert node.podman("exec", "kept", "cat", "/odd/noise").code == 0
    # the next worker finds the copy complete: there is nothing left to copy it from
    (server,) = json.loads(node.squashmount("ps", "--json").ok())
    os.kill(server["worker"], signal.SIGKILL)
    assert node.podman("exec", "kept", "python3", "-c", "import email.mime.text").code == 0
    assert node.log().count("staged: ") == 2
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_a_copy_with_another_sum_is_not_used(node: Node, debian: str, squash: Path) -> None:
    capsule = squash.parent / "capsule.json"
    capsule.write_text(json.dumps(json.loads(capsule.read_text()) | {"sha256": "0" * 64}))
    start(node, debian)
    wait_for(lambda: "capsule.json says 0000" in node.log(), "the copy is refused")
    assert node.podman("exec", "kept", "cat", "/odd/noise").code == 0
    cut(squash)
    assert node.podman("exec", "kept", "python3", "-c", "import email.mime.text").code != 0
    node.podman("rm", "-f", "-t0", "kept").ok()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"SQUASHMOUNT_STAGE_MIB": "1"}, "is larger than stage_mib = 1"),
        ({"SQUASHMOUNT_STAGE_DIR": "/nowhere/at/all"}, "No such file or directory: '/nowhere/at/all'"),
        ({"SQUASHMOUNT_STAGE_DIR": "/proc"}, "not staged: "),
    ],
)
def test_what_cannot_be_staged_runs_from_the_shared_file(
    node: Node, debian: str, settings: dict[str, str], says: str
) -> None:
    node.env |= settings
    assert node.podman("run", "--rm", debian, "echo", "runs").ok() == "runs"
    assert says in node.log()
    assert "\nstaged: " not in node.log()


def test_the_users_id_is_the_one_outside(node: Node, debian: str, local: Path) -> None:
    node.env["SQUASHMOUNT_STAGE_DIR"] = f"{local}/$UID"
    own = local / str(node.user.uid)
    own.mkdir(mode=0o700)
    os.chown(own, node.user.uid, node.user.gid)
    node.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    wait_for(lambda: "\nstaged: " in node.log() or " staged: " in node.log(), "the copy is complete")
    node.podman("rm", "-f", "-t0", "kept").ok()
    own.rmdir()


@pytest.mark.parametrize("damage", ["rm {0}; mkfifo {0}", "head -c 200000 /dev/zero | tr '\\0' '[' > {0}"])
def test_a_hostile_capsule_is_no_reason_not_to_start(node: Node, debian: str, squash: Path, damage: str) -> None:
    run("sh", "-c", damage.format(squash.parent / "capsule.json")).ok()
    assert node.podman("run", "--rm", debian, "echo", "runs").ok() == "runs"
    assert "says what its sha256 must be" in node.log()


def test_a_store_without_sums_is_not_staged(node: Node, debian: str, squash: Path) -> None:
    (squash.parent / "capsule.json").rename(squash.parent / "gone")
    assert node.podman("run", "--rm", debian, "echo", "runs").ok() == "runs"
    assert "says what its sha256 must be" in node.log()
