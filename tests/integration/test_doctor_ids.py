"""Every id of the doctor is shown by a fault that was made for real: here is where, and those that were missing.

The fault is of the machine, the login, the files or the directory; a test that puts a file tree in the node's place
(tests/unit) does not count.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import User, make_user, run
from seccomp_filter import FCHOWN, refused
from squashmount.storage_conf.doctor.command import all_probes
from squashmount.storage_conf.podman import podman_major

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

SHOWN = {
    "test_doctor_ldap.py": (
        *("U01", "U02", "U03", "U04", "U05", "U07", "U08", "U09", "U11", "U13", "U14", "U20", "U21", "U50", "U51"),
        "U54",
    ),
    "test_doctor.py": ("U06", "U10", "U12", "U15", "U22", "U23", "U24", "U30", "U31"),
    "test_doctor_live.py": (
        *("U40", "U41", "U42", "U43", "U45", "U46", "U53", "U61", "U70", "U71", "U80", "U81", "U82"),
        *("S01", "S02", "S03", "S04", "S05", "S07", "S08"),
    ),
    "test_doctor_ids.py": ("U44", "U52", "U60", "S06", "S09"),
}
NOT_SHOWN: dict[str, str] = {}
"""Id: why no test can make the fault here."""


def test_every_id_is_shown() -> None:
    ids = sorted(name for probe in all_probes() for name in probe.ids)
    told = sorted([*NOT_SHOWN, *(name for names in SHOWN.values() for name in names)])
    assert told == ids
    for file, names in SHOWN.items():
        text = (Path(__file__).parent / file).read_text()
        asserted = set(
            re.findall(r'"(?:error |warning |info )?([US][0-9]{2})"', text.partition("NOT_SHOWN")[2] or text)
        )
        assert not set(names) - asserted, file


@pytest.fixture(scope="module")
def frida(lab: Path) -> User:
    return make_user(lab, "frida", 2044)


def doctor(frida: User, product: Path, *around: str, **environ: str) -> set[str]:
    """Return what the doctor finds, but what the lab has anyway: a filter is told, and cgroups without controllers."""
    full = {"PATH": "/usr/bin:/bin", "HOME": str(frida.home), "USER": frida.name, **environ}
    full |= {"XDG_RUNTIME_DIR": f"/run/user/{frida.uid}"}
    words = [f"{name}={value}" for name, value in full.items()]
    become = ("setpriv", f"--reuid={frida.uid}", f"--regid={frida.gid}", "--init-groups", "env", "-i", *words)
    done = run(*around, *become, str(product / "bin/squashmount-conf"), "doctor", "--json", cwd=str(frida.home))
    assert done.out, done.err
    return {f"{one['severity']} {one['id']}" for one in json.loads(done.out)["findings"]} - {"info U23", "info U61"}


@contextmanager
def system_file(text: str) -> Iterator[None]:
    """Put a storage.conf into the lab's /etc."""
    path = Path("/etc/containers/storage.conf")
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


_AS_6 = podman_major() >= 6 if shutil.which("podman") else False
_ROOTS = 'graphroot = "/var/lib/containers/storage"\nrunroot = "/run/containers/storage"\n'
# as 6 reads it, they are everybody's, not root's alone
_SYSTEM = '[storage]\ndriver = "overlay"\n' + ("" if _AS_6 else _ROOTS)


def test_all_is_well(frida: User, product: Path) -> None:
    with system_file(_SYSTEM):
        assert doctor(frida, product) == set()


def test_u44_chown_is_refused_as_by_a_server(frida: User, product: Path) -> None:
    with system_file(_SYSTEM):
        assert doctor(frida, product, *refused(FCHOWN)) == {"error U44"}


def test_u52_systemd_that_ends_everything_with_the_session(frida: User, product: Path, lab: Path) -> None:
    (lab / "systemd/system").mkdir(parents=True)
    shown = f'mkdir -p /run/systemd && mount --bind {lab}/systemd /run/systemd && exec "$@"'
    around = ("unshare", "--mount", "--propagation", "private", "sh", "-c", shown, "sh")
    with system_file(_SYSTEM):
        assert doctor(frida, product, *around) == {"info U52"}
        assert doctor(frida, product) - {"info U52"} == set()


@pytest.mark.parametrize(
    ("storage", "containers"), [("[storage]\ndriver = 'overlay'\noptions = 7\n", ""), ("", "engine = 5\n")]
)
def test_a_table_that_is_a_number_is_no_mistake_of_ours(
    frida: User, product: Path, storage: str, containers: str
) -> None:
    folder = frida.home / ".config/containers"
    folder.mkdir(parents=True)
    (folder / "storage.conf").write_text(storage)
    (folder / "containers.conf").write_text(containers)
    try:
        done = frida.run(str(product / "bin/squashmount-conf"), "doctor", "--json")
    finally:
        run("rm", "-r", str(frida.home / ".config")).ok()
    assert done.out
    assert "nobody foresaw" not in done.out


def test_in_a_user_namespace_roots_files_are_not_somebodys(frida: User, product: Path) -> None:
    command = (str(product / "bin/squashmount-conf"), "doctor", "--json", "--only", "U06")
    assert json.loads(frida.run("unshare", "-Ur", *command).out)["findings"] == []


def test_s09_in_podman_unshare_nothing_is_judged_for_the_wrong_user(frida: User, product: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": f"/run/user/{frida.uid}"}
    command = (str(product / "bin/squashmount-conf"), "doctor", "--json")
    try:
        for around in (("podman", "unshare"), ("unshare", "-Ur")):
            done = frida.run(*around, *command, env=environ)
            said = json.loads(done.out)
            assert [f"{one['severity']} {one['id']}" for one in said["findings"]] == ["error S09"], said
            assert (done.code, said["checked"], set(said["skipped"].values())) == (11, ["S09"], {"S09"})
            assert f"0 {frida.uid} 1" in said["findings"][0]["evidence"].replace("  ", " ")
    finally:
        frida.run("podman", "system", "migrate", env=environ)
        run("rm", "-rf", f"{frida.home}/.local", f"{frida.home}/.config").ok()


def test_s09_who_keeps_his_ids_in_a_namespace_is_told_and_examined(frida: User, product: Path) -> None:
    done = frida.run("unshare", "-Uc", str(product / "bin/squashmount-conf"), "doctor", "--json")
    said = json.loads(done.out)
    assert [one["severity"] for one in said["findings"] if one["id"] == "S09"] == ["info"]
    assert "U07" in said["checked"]


def test_a_podman_without_any_configuration_is_told_but_works(frida: User, product: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": f"/run/user/{frida.uid}"}
    frida.run("podman", "info", env=environ).ok()  # Podman 4 takes vfs
    try:
        assert doctor(frida, product) == {"warning U81"}
    finally:
        frida.run("podman", "system", "migrate", env=environ).ok()  # its namespace has mounts in the graphroot
        run("rm", "-rf", f"{frida.home}/.local", f"{frida.home}/.config").ok()


def test_u60_no_cgroups_of_version_2(frida: User, product: Path) -> None:
    hidden = 'mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && exec "$@"'
    around = ("unshare", "--mount", "--propagation", "private", "sh", "-c", hidden, "sh")
    with system_file(_SYSTEM):
        assert doctor(frida, product, *around) == {"warning U60"}


def test_s06_a_store_of_the_system_that_users_do_not_get(frida: User, product: Path, lab: Path) -> None:
    store = lab / "system-store"
    store.mkdir()
    with system_file(f'{_SYSTEM}[storage.options]\nadditionalimagestores = ["{store}"]\n'):
        assert doctor(frida, product) == ({"error S04"} if _AS_6 else {"warning S06"})
    os.rmdir(store)
