"""What Podman, newuidmap, crun and ours really say is known to `squashmount-conf doctor --explain`."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Done, Node, User, make_user, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_podman]


@pytest.fixture(scope="module")
def eve(lab: Path) -> User:
    return make_user(lab, "eve", 2010)


@pytest.fixture
def local(lab: Path, eve: User) -> Iterator[Path]:
    """Return a node-local disk, with a good store in it."""
    folder = lab / "explain"
    for name in ("overlay-images/images", "overlay-layers/layers"):
        (folder / "store" / name).parent.mkdir(parents=True)
        (folder / "store" / f"{name}.json").write_text("[]")
        (folder / "store" / f"{name}.lock").write_text("")
    folder.chmod(0o1777)
    yield folder
    podman(eve, "system", "migrate")
    shutil.rmtree(folder)
    shutil.rmtree(eve.home / ".config", ignore_errors=True)


def podman(user: User, *argv: str, **environ: str) -> Done:
    return user.run("podman", *argv, env={"XDG_RUNTIME_DIR": f"/run/user/{user.uid}", **environ})


def configure(user: User, local: Path, more: str = "") -> None:
    path = user.home / ".config/containers/storage.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    places = f'graphroot = "{local}/graph"\nrunroot = "/run/user/{user.uid}/c"\n'
    path.write_text(f'[storage]\ndriver = "overlay"\n{places}{more}')
    run("chown", "-R", f"{user.uid}:{user.gid}", str(user.home)).ok()


def explained(product: Path, done: Done) -> list[str]:
    """Return the texts of the messages that are known of all a program said."""
    said = done.out + done.err
    script = 'printf %s "$1" | "$0" doctor --json --explain -'
    answer = run("sh", "-c", script, str(product / "bin/squashmount-conf"), said)
    assert answer.code == 0, f"nothing is known of:\n{said}"
    return [message["message"] for message in json.loads(answer.out)["messages"]]


STORE = '[storage.options]\nadditionalimagestores = ["{}"]\n'
OVERLAY = "[storage.options.overlay]\n"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (STORE.format("/nowhere"), "can't stat imageStore dir {store}: stat {path}"),
        (
            OVERLAY + "ignore_chown_errors = true\n",
            "incompatible types: TOML value has type {given}; destination has type ",
        ),
        (OVERLAY + 'mount_program = "/nowhere"\n', "overlay: can't stat program"),
    ],
)
def test_mistakes_in_storage_conf(eve: User, local: Path, product: Path, more: str, expected: str) -> None:
    configure(eve, local, more)
    assert explained(product, podman(eve, "images"))[0].startswith(expected)


def test_broken_stores(eve: User, local: Path, product: Path) -> None:
    configure(eve, local, STORE.format(local / "store"))
    images = local / "store/overlay-images/images.json"
    twins = [{"id": letter * 64, "names": ["localhost/x:1"], "metadata": "{}"} for letter in "ab"]
    images.write_text(json.dumps(twins))
    expected = "read-only image store assigns the same name to multiple images"
    assert explained(product, podman(eve, "images")) == [expected]
    images.write_text("[]")
    images.parent.chmod(0o700)
    assert explained(product, podman(eve, "images")) == ["overlay-images/images.lock: permission denied"]
    images.parent.chmod(0o755)


def test_names_and_drivers(eve: User, local: Path, product: Path) -> None:
    configure(eve, local)
    unknown = podman(eve, "run", "--rm", "--pull=never", "localhost/nothing")
    assert explained(product, unknown) == ["image not known"]
    assert "no unqualified-search registries are defined" in explained(product, podman(eve, "pull", "nothing"))[0]
    driver = podman(eve, "--storage-driver", "vfs", "images")
    assert explained(product, driver)[0].startswith('database graph driver "{old}" does not match')


def test_sessions_and_ranges(eve: User, local: Path, product: Path) -> None:
    configure(eve, local)
    (local / "theirs").mkdir(mode=0o700)
    other = podman(eve, "images", XDG_RUNTIME_DIR=str(local / "theirs"))
    # Podman 4; Podman 5
    expected = ("XDG_RUNTIME_DIR directory {path} is not owned", "mkdir {path}: permission denied")
    assert explained(product, other)[0].startswith(expected)
    podman(eve, "system", "migrate")
    wrong_name = podman(eve, "unshare", "true", USER="root")
    said = explained(product, wrong_name)
    assert said[0].startswith("cannot find UID/GID for user {user}: no subuid ranges found")
    assert "Using rootless single mapping into the namespace" in said
    podman(eve, "system", "migrate")
    env = {"XDG_RUNTIME_DIR": f"/run/user/{eve.uid}"}
    without = eve.run("setpriv", "--no-new-privs", "podman", "unshare", "true", env=env)
    assert explained(product, without)[0] == "newuidmap: write to uid_map failed: Operation not permitted"
    lost = eve.run("env", "PATH=/nowhere", "/usr/bin/podman", "unshare", "true", env=env)
    assert explained(product, lost)[0].startswith("command required for rootless mode with multiple IDs")


NEWUIDMAP = "unshare -U sleep 60 & pid=$!; sleep 0.3; {} $pid 0 5 10; kill $pid"


def test_newuidmap_and_namespaces(eve: User, product: Path) -> None:
    for program, kind in (("newuidmap", "uid"), ("newgidmap", "gid")):
        done = eve.run("sh", "-c", NEWUIDMAP.format(program))
        assert explained(product, done) == [f"{program}: {kind} range {{inside}} -> {{outside}} not allowed"]
    assert explained(product, eve.run("getsubids", "nobodyhere")) == ["Error fetching ranges"]
    none_left = "echo 0 > /proc/sys/user/max_user_namespaces; unshare -U true"
    assert explained(product, eve.run("unshare", "-Ur", "sh", "-c", none_left)) == [
        "cannot clone: No space left on device"
    ]


@pytest.mark.needs_fuse
def test_containers_and_our_own(compute: Node, busybox: str, product: Path) -> None:
    done = compute.podman("run", "--rm", busybox, "/nowhere")
    assert any("not found" in text for text in explained(product, done))
    done = compute.migrate("mig", "localhost/nothing:1", str(compute.stores[0]))
    assert explained(product, done) == ["Podman has no image {name}."]
    compute.run("mkdir", str(compute.base / "empty")).ok()
    done = compute.migrate("images", str(compute.base / "empty"))
    assert explained(product, done) == ["is empty, not a store."]
    compute.env["SQUASHMOUNT_ENGINE"] = "fast"
    done = compute.podman("run", "--rm", busybox, "true")
    assert "using mount program {program}: {reason}" in explained(product, done)
