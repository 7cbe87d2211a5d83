"""One site.toml for a node: real Podman of two users shows what it asks for, runs a container, takes its module."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import User, make_user, run
from squashmount.storage_conf.podman import podman_major

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

SITE = """\
mount_program = "{product}/bin/squashmount-mount"
forbidden = ["/home"]
hooks_dirs = ["{local}/hooks.d"]
linger = 1
[scratch]
graphroot = "{local}/scratch/$UID/g"
runroot = "/run/user/$UID/c"
[[stores]]
path = "{local}/store"
all = true
[[stores]]
path = "{images}"
groups = ["physics"]
[modules.hpc.containers]
env = ["FROM_MODULE=yes"]
"""


@pytest.fixture(scope="module")
def frank(lab: Path) -> User:
    run("groupadd", "-g", "2990", "physics").ok()
    user = make_user(lab, "frank", 2012)
    run("usermod", "-aG", "physics", "frank").ok()
    return user


@pytest.fixture(scope="module")
def grace(lab: Path) -> User:
    return make_user(lab, "grace", 2013)


@pytest.fixture
def local(lab: Path, store: Path, busybox: str, product: Path, frank: User, grace: User) -> Iterator[Path]:
    """Return the node-local disk of a node that has got a site.toml and what `generate --site` makes of it."""
    assert busybox
    folder = lab / "site"
    for name in ("overlay-images/images", "overlay-layers/layers"):
        (folder / "store" / name).parent.mkdir(parents=True)
        (folder / "store" / f"{name}.json").write_text("[]")
        (folder / "store" / f"{name}.lock").write_text("")
    (folder / "hooks.d").mkdir()
    (folder / "scratch").mkdir()
    (folder / "scratch").chmod(0o1777)
    kept = run("find", "/etc/containers", "/etc/profile.d", "/etc/squashmount", "-type", "f").out.split()
    Path("/etc/squashmount").mkdir(exist_ok=True)
    Path("/etc/squashmount/site.toml").write_text(SITE.format(product=product, local=folder, images=store))
    yield folder
    for user in (frank, grace):
        login(user, "podman system migrate", check=False)
        shutil.rmtree(user.home / ".config", ignore_errors=True)
    run("rm", "-rf", "--one-file-system", str(folder))
    for path in set(
        run("find", "/etc/containers", "/etc/profile.d", "/etc/squashmount", "-type", "f").out.split()
    ) - set(kept):
        Path(path).unlink()


def login(user: User, command: str, *, check: bool = True) -> str:
    done = user.run("bash", "-c", f". /etc/profile; {command}", env={"XDG_RUNTIME_DIR": f"/run/user/{user.uid}"})
    return done.ok() if check else done.err


def test_a_site_from_one_file(local: Path, store: Path, busybox: str, product: Path, frank: User, grace: User) -> None:
    command = str(product / "bin/squashmount-conf")
    run(command, "check", "--strict", "/etc/squashmount/site.toml").ok()
    run(command, "generate", "--site", "--write").ok()
    for user, stores in ((frank, [str(store), f"{local}/store"]), (grace, [f"{local}/store"])):
        info = json.loads(login(user, "podman info --format json"))
        assert info["store"]["graphRoot"] == f"{local}/scratch/{user.uid}/g"
        assert info["store"]["graphOptions"]["overlay.mount_program"]["Executable"].startswith(str(product))
        assert info["host"]["cgroupManager"] == "cgroupfs"
        checked = json.loads(login(user, f"{command} check --json; true"))
        assert checked["stores"] == stores
        assert [one for one in checked["findings"] if one["severity"] == "error"] == []
    run_it = "podman --log-level=error run --rm --pull=never --network=host"
    assert login(frank, f"{run_it} {busybox} echo from the squash") == "from the squash"
    assert "image not known" in login(grace, f"{run_it} {busybox} true", check=False)
    explained = login(frank, f"{command} explain linger")
    assert explained.startswith("linger = 1.0  # /etc/squashmount/site.toml:4\n")
    if "--module" in run("podman", "--help").out:
        said = login(frank, f"podman --module hpc run --rm --network=host {busybox} sh -c 'echo $FROM_MODULE'")
        assert said == "yes"
    modules = Path("/etc/containers/containers.conf.modules/hpc")
    run(command, "check", "--strict", str(modules)).ok()


def test_files_of_podman_6_are_read_by_one_that_knows_them(local: Path, product: Path, grace: User) -> None:
    command = str(product / "bin/squashmount-conf")
    run(command, "generate", "--site", "--write", "--podman", "6").ok()
    drop_in = "/etc/containers/storage.rootless.conf.d/50-squashmount.conf"
    run(command, "check", "--podman", "6", "--strict", drop_in).ok()
    if podman_major() >= 6:
        info = json.loads(login(grace, "podman info --format json"))
        assert info["store"]["graphRoot"] == f"{local}/scratch/{grace.uid}/g"


def test_a_users_own_file_has_the_stores_of_his_groups(local: Path, busybox: str, product: Path, frank: User) -> None:
    command = str(product / "bin/squashmount-conf")
    login(frank, f"{command} generate --write")
    info = json.loads(login(frank, "podman info --format json"))["store"]
    assert info["graphRoot"] == f"{local}/scratch/{frank.uid}/g"
    assert busybox in login(frank, "podman images --format '{{.Repository}}:{{.Tag}}'").split()
    told = login(frank, f"{command} generate --write --graphroot '/home/$UID/g'", check=False)
    assert "which the site forbids" in told


@pytest.mark.parametrize("path", ["site.toml", "."])
def test_what_others_could_change_is_refused(local: Path, product: Path, frank: User, path: str) -> None:
    assert local.is_dir()
    site = Path("/etc/squashmount") / path
    mode = site.stat().st_mode & 0o7777
    site.chmod(0o777)
    try:
        command = str(product / "bin/squashmount-conf")
        done = run(command, "generate", "--site", "--write")
        assert (done.code, "is not trusted" in done.err) == (2, True)
        assert "is not trusted" in login(frank, f"{command} explain", check=False)
        done = run(command, "check", "/etc/squashmount/site.toml")
        assert done.code == 11
        assert "can be written by everybody" in done.out
    finally:
        site.chmod(mode)


def test_a_link_of_another_user_is_refused(local: Path, product: Path, frank: User) -> None:
    assert local.is_dir()
    site, link = Path("/etc/squashmount/site.toml"), Path("/etc/squashmount/link")
    real = site.rename("/etc/squashmount/real.toml")
    link.symlink_to(real)
    site.symlink_to(link)
    command = str(product / "bin/squashmount-conf")
    try:
        run(command, "explain").ok()
        os.chown(link, frank.uid, frank.uid, follow_symlinks=False)
        done = run(command, "explain")
        assert (done.code, f"'{link}' belongs to uid {frank.uid}" in done.err) == (2, True)
    finally:
        link.unlink()
        site.unlink()
        real.rename(site)


def test_a_site_file_that_users_cannot_read_is_named(local: Path, product: Path) -> None:
    assert local.is_dir()
    site = Path("/etc/squashmount/site.toml")
    site.chmod(0o600)
    done = run(str(product / "bin/squashmount-conf"), "check", "--strict", str(site))
    assert (done.code, f"chmod a+r {site}" in done.out) == (11, True)
