"""Every check fires on what it is for and stays silent on a good machine. Real files, real stores, real programs."""

import dataclasses
import errno
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from squashmount.storage_conf import store_facts
from squashmount.storage_conf.checks import CHECKS, run_checks
from squashmount.storage_conf.facts import Facts, gather
from squashmount.storage_conf.finding import Severity
from squashmount.storage_conf.podman import Machine

from squashmount.mountinfo import Mount

GOOD = """\
[storage]
driver = "overlay"
graphroot = "{root}/c-$UID/gr"
runroot = "/tmp/c-$UID/run"
rootless_storage_path = "{root}/c-$UID/gr"
[storage.options]
additionalimagestores = ["{root}/store"]
[storage.options.overlay]
mount_program = "{root}/squashmount"
"""


class Bench:
    """A small machine in a directory: files, one store, one mount program."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uid = os.getuid() or 4321
        self.environ = {"HOME": str(root / "home"), "XDG_RUNTIME_DIR": str(root / "xdg")}
        self.mounts = [Mount(1, "/", "ext4", "/dev/sda", "rw"), Mount(2, "/tmp", "tmpfs", "tmpfs", "rw")]
        self.conf = root / "home/.config/containers/storage.conf"
        self.store = root / "store"
        self.write(self.conf, GOOD.format(root=root))
        for name in ("overlay-images/images", "overlay-layers/layers"):
            self.write(self.store / f"{name}.lock", "")
        self.write(self.store / "squashmount/version", "1\n")
        self.records([{"id": "a" * 64, "layer": "l1", "names": ["x:1"]}], [{"id": "l1"}])
        self.script("squashmount", "#!/bin/sh\n# from squashmount.__main__ import main\n")
        (root / "xdg").mkdir()
        os.chown(root / "xdg", self.uid, -1)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def records(self, images: list[dict[str, Any]], layers: list[dict[str, Any]]) -> None:
        self.write(self.store / "overlay-images/images.json", json.dumps(images))
        self.write(self.store / "overlay-layers/layers.json", json.dumps(layers))

    def script(self, name: str, text: str) -> None:
        self.write(self.root / name, text)
        (self.root / name).chmod(0o755)

    def swap(self, old: str, new: str) -> None:
        text = self.conf.read_text()
        assert old in text
        self.conf.write_text(text.replace(old, new))

    def mount(self, target: Path | str, fstype: str) -> None:
        self.mounts.append(Mount(9, str(target), fstype, "server:/x", "rw"))

    def facts(self, podman: int = 5) -> Facts:
        machine = Machine(self.environ, self.uid, podman, etc=str(self.root / "etc"), vendor=str(self.root / "usr"))
        return gather(machine, self.mounts)

    def found(self, podman: int = 5) -> dict[str, Severity]:
        return {name: finding.severity for name, finding in run_checks(self.facts(podman))}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("podman", [4, 5])
def test_a_good_machine_has_no_finding(bench: Bench, podman: int) -> None:
    assert run_checks(bench.facts(podman)) == ()


Break = Callable[[Bench], None]
E, W, I = Severity.ERROR, Severity.WARNING, Severity.INFO  # noqa: E741 - columns of the table below


def database(driver: str, runroot: str) -> Callable[["Bench"], None]:
    def change(bench: Bench) -> None:
        folder = bench.root / f"c-{bench.uid}/gr"
        (folder / "overlay-images").mkdir(parents=True)
        connection = sqlite3.connect(folder / "db.sql")
        connection.execute("CREATE TABLE DBConfig (ID INTEGER, GraphDriver TEXT, RunRoot TEXT)")
        connection.execute("INSERT INTO DBConfig VALUES (1, ?, ?)", (driver, runroot.format(uid=bench.uid)))
        connection.commit()
        connection.close()

    return change


def big_runroot(bench: Bench) -> None:
    bench.swap("/tmp/c-$UID/run", "/tmp/" + 46 * "x")


def system_store(bench: Bench) -> None:
    bench.write(bench.root / "etc/storage.conf", '[storage.options]\nadditionalimagestores = ["/other"]\n')


def system_store_no_user_file(bench: Bench) -> None:
    bench.conf.unlink()
    bench.write(bench.root / "etc/storage.conf", GOOD.format(root=bench.root))


def env_file(bench: Bench) -> None:
    bench.swap("rootless_storage_path", "#")
    bench.environ["CONTAINERS_STORAGE_CONF"] = str(bench.conf)


def site_literal(bench: Bench) -> None:
    bench.swap("c-$UID/gr", "all")


def link_squash_only(bench: Bench) -> None:
    (bench.store / "squashmount/version").unlink()
    (bench.store / "squashmount").rmdir()
    bench.write(bench.store / "overlay/l/ABC.squash", "")
    bench.swap(f'mount_program = "{bench.root}/squashmount"', "")


def slurm(bench: Bench) -> None:
    bench.environ["SLURM_JOB_ID"] = "1"


def foreign(text: str, name: str = "wrapper") -> Break:
    def change(bench: Bench) -> None:
        bench.script(name, text)
        bench.swap("/squashmount", f"/{name}")

    return change


def quick_start_without_python(bench: Bench) -> None:
    foreign("#!/bin/sh\n# squashmount", "bin/squashmount-mount")(bench)
    (bench.root / "pyvenv.cfg").touch()


def swap(old: str, new: str) -> Break:
    return lambda bench: bench.swap(old, new)


def env(name: str, value: str) -> Break:
    return lambda bench: bench.environ.update({name: value})


def store_text(name: str, text: str) -> Break:
    return lambda bench: bench.write(bench.store / name, text)


def store_without(name: str) -> Break:
    return lambda bench: (bench.store / name).unlink()


TWO = [{"id": "a" * 64, "names": ["x:1"]}, {"id": "b" * 64, "names": ["x:1", "y:1"]}]

CASES: list[tuple[str, Severity, int, Break]] = [
    ("unreadable_file", E, 5, lambda bench: bench.write(bench.conf, "[storage")),
    ("unreadable_file", E, 5, lambda bench: bench.write(bench.root / "etc/containers.conf", "= 1")),
    ("unreadable_file", E, 5, env("CONTAINERS_STORAGE_CONF", "/not/there")),
    ("unknown_key", W, 5, swap("graphroot", "additonalimagestores = []\ngraphroot")),
    ("wrong_type", E, 5, swap("mount_program", "ignore_chown_errors = true\nmount_program")),
    ("environment", E, 5, env("STORAGE_OPTS", "x")),
    ("environment", E, 5, env("STORAGE_DRIVER", "vfs")),
    ("driver", E, 5, swap('"overlay"', '"vfs"')),
    ("driver", E, 5, swap('driver = "overlay"', "")),
    ("driver", W, 5, lambda bench: bench.conf.unlink()),
    ("former_driver", E, 5, database("vfs", "/tmp/c-{uid}/run")),
    ("former_runroot", W, 5, database("overlay", "/run/other")),
    ("former_driver", E, 4, lambda bench: (bench.root / f"c-{bench.uid}/gr/vfs-images").mkdir(parents=True)),
    ("network_place", E, 5, lambda bench: bench.mount(bench.root, "lustre")),
    ("network_place", E, 5, lambda bench: bench.mount("/tmp", "nfs4")),
    ("network_place", E, 5, lambda bench: bench.mount(bench.root, "fuse.sshfs")),
    ("shared_by_users", E, 5, site_literal),
    ("shared_by_users", E, 6, site_literal),
    ("variables", E, 5, swap("c-$UID", "c-${UID}")),
    ("variables", E, 5, swap("c-$UID", "c-$NOPE")),
    ("long_runroot", E, 5, big_runroot),
    ("env_graphroot", E, 4, env_file),
    ("env_graphroot", E, 5, env_file),
    ("lost_system_keys", W, 5, system_store),
    ("lost_system_keys", W, 4, system_store_no_user_file),
    ("deprecated_path", W, 6, swap('rootless_storage_path = "', 'rootless_storage_path = "/else')),
    ("no_store", I, 5, swap("additionalimagestores", "#")),
    ("unusable_store", E, 5, swap("/store", "/gone")),
    ("incomplete_store", E, 5, store_without("overlay-images/images.lock")),
    ("incomplete_store", E, 5, store_without("overlay-layers/layers.lock")),
    ("incomplete_store", W, 5, store_without("overlay-images/images.json")),
    ("torn_store", E, 5, store_text("overlay-images/images.json", '[{"id"')),
    ("torn_store", E, 5, store_text("overlay-layers/layers.json", "{}")),
    ("torn_store", W, 5, store_text("overlay-images/images.json", "")),
    ("torn_store", E, 5, lambda bench: bench.records([{"id": "a" * 64, "layer": "l9"}], [])),
    ("duplicate_name", E, 5, lambda bench: bench.records(TWO, [])),
    ("newer_format", E, 5, store_text("squashmount/version", "99\n")),
    ("newer_format", E, 5, store_text("squashmount/version", "x1\n")),
    ("missing_program", E, 5, swap("/squashmount", "/gone")),
    ("missing_program", E, 5, lambda bench: (bench.root / "squashmount").chmod(0o644)),
    ("missing_program", E, 5, foreign("#!/not/there/python\n# squashmount", "wrapper2")),
    ("missing_program", E, 5, lambda bench: bench.swap(f"{bench.root}/squashmount", "squashmount")),
    ("missing_program", E, 5, quick_start_without_python),
    ("foreign_program", W, 5, foreign("#!/bin/sh\nexec squashfuse_ll")),
    ("foreign_program", E, 6, foreign("#!/bin/sh\nexec squashfuse_ll")),
    ("foreign_program", E, 5, foreign("#!/bin/sh\nexec x", "fuse-overlayfs")),
    ("foreign_program", E, 5, link_squash_only),
    ("runtime_dir", W, 5, env("XDG_RUNTIME_DIR", "")),
    ("runtime_dir", W, 5, env("XDG_RUNTIME_DIR", "/not/there")),
    ("cgroup_manager", W, 5, slurm),
    ("runroot_on_disk", I, 5, lambda bench: bench.mount("/tmp", "ext4")),
]


@pytest.mark.parametrize(
    ("check", "severity", "podman", "change"),
    CASES,
    ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)],
)
def test_it_is_found(bench: Bench, check: str, severity: Severity, podman: int, change: Break) -> None:
    change(bench)
    findings = [finding for name, finding in run_checks(bench.facts(podman)) if name == check]
    assert findings
    assert {finding.severity for finding in findings} == {severity}
    for finding in findings:
        assert all((finding.what, finding.why, finding.fix))
        assert "{" not in finding.what.replace("${UID}", "")


def test_every_check_has_a_case() -> None:
    elsewhere = {"graphroot_flags", "unreadable_store", "no_locks", "unwritable_place"}
    assert {check.__name__ for check in CHECKS} == {case[0] for case in CASES} | elsewhere


def as_another_user(question: Callable[[], object]) -> Any:
    """Ask in a child that gave up root; an ordinary user asks himself."""
    if os.getuid() != 0:
        return question()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(4321)
            os.setuid(4321)
            os.write(writer, json.dumps(question()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def test_a_database_that_agrees_or_is_not_one(bench: Bench) -> None:
    database("overlay", "/tmp/c-{uid}/run")(bench)
    assert bench.found() == {}
    (bench.root / f"c-{bench.uid}/gr/db.sql").write_text("no database")
    assert bench.found() == {}


def test_a_store_closed_to_the_user_and_a_place_he_cannot_write() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # pytest's own folder is closed to others
        bench = Bench(Path(name))
        bench.root.chmod(0o755)
        (bench.store / "overlay-images/images.json").chmod(0)
        (bench.root / "closed").mkdir()
        (bench.root / "closed").chmod(0o555)
        bench.swap(f"{bench.root}/c-$UID/gr", f"{bench.root}/closed/$UID")
        bench.uid = os.getuid() or 4321
        found = as_another_user(lambda: [(check, kind.value) for check, kind in bench.found().items()])
    assert dict(found)["unreadable_store"] == "error"
    assert dict(found)["unwritable_place"] == "error"


def test_noexec_is_only_information(bench: Bench) -> None:
    facts = bench.facts()
    noexec = dataclasses.replace(facts.graphroot, flags=frozenset({"noexec"}))
    found = dict(run_checks(dataclasses.replace(facts, graphroot=noexec)))
    assert found["graphroot_flags"].severity is Severity.INFO


def test_mount_flags_are_those_of_the_kernel(bench: Bench) -> None:
    with open("/proc/self/mountinfo") as file:
        rows = [line.split() for line in file]
    options = {row[4]: set(row[5].split(",")) for row in rows if os.path.isdir(row[4])}
    assert options
    for target, wanted in options.items():
        bench.swap(bench.conf.read_text(), f'[storage]\ngraphroot = "{target}"\n')
        flags = bench.facts().graphroot.flags
        assert flags == wanted & {"noexec", "nosuid", "nodev", "ro"}, target


@pytest.mark.parametrize(("code", "name"), [(errno.ENOSYS, "ENOSYS"), (errno.ENOLCK, "ENOLCK")])
def test_a_file_system_without_locks(bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int, name: str) -> None:
    def lockf(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(store_facts.fcntl, "lockf", lockf)
    assert bench.facts().stores[0].lock == name
    assert bench.found()["no_locks"] is Severity.ERROR


def test_a_lock_that_is_not_granted_does_not_hang(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.store / "overlay-images/images.lock"
    monkeypatch.setattr("squashmount.storage_conf.store_facts.read_store.__kwdefaults__", {"lock_timeout": 0.2})
    code = "import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.lockf(f,fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout
        holder.stdout.readline()
        assert bench.found()["no_locks"] is Severity.ERROR
        holder.communicate("\n")
    assert "no_locks" not in bench.found()


def test_podman_6_takes_the_graphroot_of_the_system(bench: Bench) -> None:
    bench.conf.unlink()
    bench.write(bench.root / "etc/storage.conf", '[storage]\ndriver = "overlay"\ngraphroot = "/var/lib/containers"\n')
    assert bench.found(6)["shared_by_users"] is Severity.ERROR
    assert "shared_by_users" not in bench.found(5)
    drop_in = bench.root / "etc/storage.rootless.conf.d/50-squashmount.conf"
    bench.write(drop_in, '[storage]\ngraphroot = "/tmp/c-$UID/gr"\n')
    assert "shared_by_users" not in bench.found(6)
    assert bench.facts(6).graphroot.path == f"/tmp/c-{bench.uid}/gr"


def test_stores_of_several_drop_ins(bench: Bench) -> None:
    bench.write(bench.root / "etc/storage.conf.d/60.conf", '[storage.options]\nadditionalimagestores = ["/a"]\n')
    text = '[storage.options]\nadditionalimagestores = ["/b", {append = true}]\n'
    bench.write(bench.root / "etc/storage.conf.d/70.conf", text)
    assert [store.path for store in bench.facts(6).stores] == ["/a", "/b"]


def test_what_a_rootless_user_inherits_from_the_system_file(bench: Bench) -> None:
    system_store_no_user_file(bench)
    facts = bench.facts(5)
    assert facts.graphroot.path == f"{bench.root}/c-{bench.uid}/gr"
    assert (facts.stores, facts.program.path) == ((), "")
    assert facts.runroot.path == f"{bench.root}/xdg/containers"


def test_unknown_key_names_what_was_meant(bench: Bench) -> None:
    bench.swap("graphroot", 'mount_progam = "x"\ngraphroot')
    fixes = [finding.fix for name, finding in run_checks(bench.facts()) if name == "unknown_key"]
    assert fixes == ["write storage.options.mount_program"]


def test_the_child_that_tries_the_lock_is_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, children = os.fork, []

    def remembered() -> int:
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", remembered)
    assert bench.facts().stores[0].lock == "ok"
    assert children
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
