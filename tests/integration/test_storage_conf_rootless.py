"""As an ordinary user: what the site ships arrives, and `check` sees the places the real podman uses."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import User, image_store, make_user, run
from squashmount.storage_conf.podman import podman_major

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_podman]

PROFILE = "/etc/profile.d/squashmount.sh"


@pytest.fixture(scope="module")
def carol(lab: Path) -> User:
    return make_user(lab, "carol", 2004)


@pytest.fixture
def local(lab: Path, carol: User) -> Iterator[Path]:
    """Return the node-local disk, with an empty store on it; the lab's /etc is private, but the session shares it."""
    folder = lab / "local"
    for name in ("overlay-images/images", "overlay-layers/layers"):
        (folder / "store" / name).parent.mkdir(parents=True)
        (folder / "store" / f"{name}.json").write_text("[]")
        (folder / "store" / f"{name}.lock").write_text("")
    (folder / "scratch").mkdir()
    (folder / "scratch").chmod(0o1777)
    yield folder
    carol.run("podman", "system", "migrate", env={"XDG_RUNTIME_DIR": f"/run/user/{carol.uid}"})
    shutil.rmtree(folder)
    for path in (
        "squashmount",
        "containers.conf.d/50-squashmount.conf",
        "storage.conf",
        "storage.conf.before-squashmount",
        "storage.rootless.conf.d",
    ):
        target = Path("/etc/containers") / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    Path(PROFILE).unlink(missing_ok=True)
    for name in (".config", ".local"):
        shutil.rmtree(carol.home / name, ignore_errors=True)


def login(user: User, command: str, **environ: str) -> str:
    env = {"XDG_RUNTIME_DIR": f"/run/user/{user.uid}", **environ}
    return user.run("bash", "-c", f". /etc/profile; {command}", env=env).ok()


def test_what_a_site_ships_reaches_an_ordinary_user(local: Path, carol: User, product: Path) -> None:
    command = str(product / "bin/squashmount-conf")
    store, graphroot = local / "store", f"{local}/scratch/$UID/gr"
    run(command, "generate", "--site", "--write", "--graphroot", graphroot, str(store)).ok()
    said = json.loads(login(carol, "podman info --format json"))
    info = said["store"]
    assert info["graphRoot"] == f"{local}/scratch/{carol.uid}/gr"
    assert image_store(said) == str(store)
    assert info["graphOptions"]["overlay.mount_program"]["Executable"] == f"{product}/bin/squashmount-mount"
    answer = json.loads(login(carol, f"{command} check --json"))
    assert answer["stores"] == [str(store)]
    assert [item for item in answer["findings"] if item["severity"] != "info"] == []
    root = json.loads(run("podman", "info", "--format", "json").ok())
    assert root["store"]["graphRoot"] == "/var/lib/containers/storage"
    assert image_store(root) is None


def test_what_the_system_file_alone_brings(local: Path, carol: User, product: Path) -> None:
    command = str(product / "bin/squashmount-conf")
    run(command, "generate", "--site", "--write", "--graphroot", f"{local}/scratch/$UID/gr", str(local / "store")).ok()
    rootless_drop_in = Path("/etc/containers/storage.rootless.conf.d/50-squashmount.conf")
    as_6 = podman_major() >= 6
    assert rootless_drop_in.exists() == as_6
    if as_6:
        rootless_drop_in.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{local}/scratch/$UID/gr"\n')
    else:
        os.unlink(PROFILE)
    with open("/etc/containers/storage.conf", "a") as file:
        file.write(f'[storage.options]\nadditionalimagestores = ["{local}/store"]\n')
    info = json.loads(login(carol, "podman info --format json"))
    assert info["store"]["graphRoot"] == f"{local}/scratch/{carol.uid}/gr"
    assert image_store(info) == (f"{local}/store" if as_6 else None)
    done = carol.run(command, "check", env={"XDG_RUNTIME_DIR": f"/run/user/{carol.uid}"})
    unused = f"warning: {local}/store of /etc/containers/storage.conf is not used for you."
    assert (unused in done.out) != as_6


def test_a_users_own_file(local: Path, carol: User, product: Path) -> None:
    command = str(product / "bin/squashmount-conf")
    places = f"--graphroot '{local}/scratch/$UID/own' --runroot '/run/user/$UID/r'"
    out = login(carol, f"{command} generate --write {places} {local}/store && {command} check --strict")
    assert "created: " in out
    info = json.loads(login(carol, "podman info --format json"))
    assert info["store"]["graphRoot"] == f"{local}/scratch/{carol.uid}/own"
    assert info["store"]["runRoot"] == f"/run/user/{carol.uid}/r"
    assert image_store(info) == f"{local}/store"
    assert info["host"]["cgroupManager"] == "cgroupfs"
    assert info["host"]["eventLogger"] == "file"


FILES = {
    "both": 'graphroot = "LOCAL/g-$UID"\nrunroot = "/run/user/$UID/x"\nrootless_storage_path = "LOCAL/p-$UID"\n',
    "graphroot": 'graphroot = "LOCAL/g-$USER"\n',
    "path": 'rootless_storage_path = "LOCAL/p-$UID-${UID}-$NOPE"\nrunroot = "/run/user/$UID/y/../x"\n',
    "nothing": "",
}


def conf_file(where: str, local: Path, user: User) -> Path:
    files = {
        "user": user.home / ".config/containers/storage.conf",
        "variable": local / "named.conf",
        "system": Path("/etc/containers/storage.conf"),
    }
    files[where].parent.mkdir(parents=True, exist_ok=True)
    return files[where]


@pytest.mark.parametrize("where", ["user", "variable", "system"])
@pytest.mark.parametrize("name", list(FILES))
def test_check_sees_the_places_podman_uses(local: Path, carol: User, product: Path, where: str, name: str) -> None:
    text = '[storage]\ndriver = "overlay"\n' + FILES[name].replace("LOCAL", str(local / "scratch"))
    path = conf_file(where, local, carol)
    path.write_text(text)
    run("chown", "-R", f"{carol.uid}:{carol.gid}", str(carol.home)).ok()
    for session in ({"XDG_RUNTIME_DIR": f"/run/user/{carol.uid}"}, {}):
        env = {"TMPDIR": "/dev/shm", **session}  # Podman's fallback; the lab has a /dev/shm of its own
        if where == "variable":
            env["CONTAINERS_STORAGE_CONF"] = str(path)
        store = json.loads(carol.run("podman", "info", "--format", "json", env=env).ok())["store"]
        done = carol.run(str(product / "bin/squashmount-conf"), "check", "--json", env=env)
        answer = json.loads(done.out)
        assert (answer["graphroot"], answer["runroot"]) == (store["graphRoot"], store["runRoot"])
        carol.run("podman", "system", "migrate", env=env)
        shutil.rmtree(store["graphRoot"])
