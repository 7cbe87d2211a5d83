"""The doctor's probes on real faults: each is made in the lab, and exactly its id is named."""

import fcntl
import json
import os
import re
import resource
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from lab import Done, Node, User, root_user, run
from squashmount.storage_conf.ids.baseline import Baseline, Record, as_text
from squashmount.storage_conf.podman import podman_major

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

DOCTOR = """
import json, sys, time
from importlib import import_module
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.probe import run_all
probes = [probe for name in sys.argv[1:] for probe in import_module(f"squashmount.storage_conf.doctor.{name}").PROBES]
facts = {}
start = time.monotonic()
found = run_all(probes, Node(), facts=facts)
print(json.dumps({"findings": [one.as_json() for one in found], "facts": facts, "seconds": time.monotonic() - start}))
"""


class Answer:
    """What the doctor said."""

    def __init__(self, done: Done) -> None:
        self.all = json.loads(done.ok())
        self.facts: dict[str, str] = self.all["facts"]
        self.wrong = {one["id"]: one for one in self.all["findings"] if one["severity"] != "info"}
        # the lab's cgroup has no controllers, nor can it have them
        self.ids = {f"{one['severity']} {one['id']}" for one in self.all["findings"]} - {"info U61"}


def doctor(node: Node, *modules: str, **environ: str) -> Answer:
    words = [f"{key}={value}" for key, value in environ.items()]
    return Answer(node.run("env", *words, str(node.product / "bin/python"), "-I", "-c", DOCTOR, *modules))


@pytest.fixture
def node(alice: User, product: Path) -> Iterator[Node]:
    made = Node(alice, "doctor", product)
    made.graphroot.mkdir()
    os.chown(made.graphroot, alice.uid, alice.gid)
    yield made
    made.close()


@contextmanager
def mounted(node: Node, fstype: str, options: str) -> Iterator[None]:
    """Put a file system of this kind on the graphroot."""
    run("mount", "-t", fstype, "-o", options, "doctor", str(node.graphroot)).ok()
    os.chown(node.graphroot, node.user.uid, node.user.gid)
    try:
        yield
    finally:
        run("umount", "-l", str(node.graphroot)).ok()


def everything(folder: Path) -> list[str]:
    """Return all paths below a directory, also those too long for pathlib: other tests' images lie there."""
    return sorted(os.path.join(top, name) for top, folders, files in os.walk(folder) for name in (*folders, *files))


def test_live_all_well(node: Node) -> None:
    before = everything(node.user.home)
    answer = doctor(node, "live")
    assert answer.wrong == {}, answer.all
    assert answer.facts["overlay in a user namespace"] == "userxattr: ok, plain: ok"
    assert everything(node.user.home) == before


def test_u43_on_overlay(node: Node) -> None:
    low = node.base / "low"
    for name in ("low", "up", "work"):
        (node.base / name).mkdir()
    with mounted(node, "overlay", f"lowerdir={low},upperdir={node.base}/up,workdir={node.base}/work"):
        answer = doctor(node, "live")
        assert answer.ids == {"warning U43"}, answer.all
        # the doctor goes by the type, to write nothing; this is what the kernel says
        script = (
            f"cd {node.graphroot}; mkdir u w m; mount -t overlay -o lowerdir=/etc,upperdir=u,workdir=w,userxattr o m"
        )
        assert node.run("unshare", "-Urm", "bash", "-c", script).code != 0


def test_u45_without_attributes(node: Node) -> None:
    with mounted(node, "ramfs", "mode=700"):
        answer = doctor(node, "live")
        assert answer.ids == {"warning U45"}, answer.all
        assert "ENOTSUP" in answer.wrong["U45"]["evidence"]


def test_u44_a_server_that_gives_no_file_away(node: Node) -> None:
    """fuse-overlayfs of an ordinary user, outside of a namespace: chown fails as on NFS with root_squash."""
    for name in ("low", "up", "work"):
        (node.base / name).mkdir()
        os.chown(node.base / name, node.user.uid, node.user.gid)
    layers = f"lowerdir={node.base}/low,upperdir={node.base}/up,workdir={node.base}/work"
    node.run("fuse-overlayfs", "-o", layers, str(node.graphroot)).ok()
    try:
        answer = doctor(node, "live")
    finally:
        run("umount", "-l", str(node.graphroot)).ok()
    assert answer.ids == {"error U44", "warning U43"}, answer.all
    assert answer.wrong["U44"]["evidence"] == "chown 1: EPERM, chown 65534: EPERM, chown 65535: EPERM"
    assert list((node.base / "up").iterdir()) == []


@contextmanager
def in_its_place(path: str, text: bytes | None = None, mode: int = 0o755) -> Iterator[None]:
    """Put a copy with this mode, or another file, over a program."""
    cover = Path(os.environ["LAB"]) / f"cover-{os.path.basename(path)}"
    cover.write_bytes(Path(path).read_bytes() if text is None else text)
    cover.chmod(mode)
    run("mount", "--bind", str(cover), path).ok()
    try:
        yield
    finally:
        run("umount", "-l", path).ok()


def test_u42_newuidmap_without_its_privilege(node: Node) -> None:
    with in_its_place("/usr/bin/newuidmap"):
        answer = doctor(node, "live")
        assert answer.ids == {"error U42"}, answer.all
        assert "chmod 4755 /usr/bin/newuidmap" in answer.wrong["U42"]["fix"]
        assert "Operation not permitted" in answer.wrong["U42"]["evidence"]


def test_u42_setuid_and_capabilities_at_once(node: Node) -> None:
    with in_its_place("/usr/bin/newgidmap", mode=0o4755):
        run("setcap", "cap_setgid+ep", "/usr/bin/newgidmap").ok()
        answer = doctor(node, "live")
        assert answer.ids == {"error U42"}, answer.all
        assert "newgidmap fails" in answer.wrong["U42"]["what"]


def test_u42_no_newuidmap(node: Node) -> None:
    answer = doctor(node, "live", PATH="/nowhere")
    assert answer.ids == {"error U42"}, answer.all
    assert "install uidmap" in answer.wrong["U42"]["fix"]


def test_u42_no_new_privileges(node: Node) -> None:
    command = ("setpriv", "--no-new-privs", str(node.product / "bin/python"), "-I", "-c", DOCTOR, "live")
    answer = Answer(node.run(*command))
    assert answer.ids == {"error U42"}, answer.all
    assert "no_new_privs" in answer.wrong["U42"]["why"]


PLUGIN = """
#include <stdbool.h>
#include <stdlib.h>
struct range { unsigned long start, count; };
int shadow_subid_has_range(const char *o, unsigned long s, unsigned long c, int t, bool *r) { *r = true; return 0; }
int shadow_subid_list_owner_ranges(const char *o, int t, struct range **r, int *n) {
    *r = malloc(sizeof **r); (*r)->start = 300000000; (*r)->count = 65536; *n = 1; return 0; }
int shadow_subid_find_subid_owners(unsigned long id, int t, unsigned **u, int *n) { *u = 0; *n = 0; return 0; }
void shadow_subid_free(void *p) { free(p); }
"""


def test_u46_a_plugin_that_grants_more_than_it_lists(node: Node, lab: Path) -> None:
    folder = "/usr/lib/x86_64-linux-gnu"  # newuidmap is setuid: nothing in the environment leads it elsewhere
    place = lab / "plugin"
    place.mkdir()
    run("mount", "-t", "tmpfs", "plugin", str(place)).ok()
    (place / "up").mkdir()
    (place / "work").mkdir()
    (place / "lab.c").write_text(PLUGIN)
    nsswitch = Path("/etc/nsswitch.conf")
    before = nsswitch.read_text()
    run("gcc", "-shared", "-fPIC", "-o", str(place / "up/libsubid_lab.so"), str(place / "lab.c")).ok()
    run("mount", "-t", "overlay", "-o", f"lowerdir={folder},upperdir={place}/up,workdir={place}/work", "o", folder).ok()
    try:
        nsswitch.write_text(before + "subid: lab\n")
        answer = doctor(node, "live")
    finally:
        nsswitch.write_text(before)
        run("umount", "-l", folder).ok()
        run("umount", "-l", str(place)).ok()
    assert answer.ids == {"error U46"}, answer.all
    assert "300000000:65536" in answer.wrong["U46"]["evidence"]


# The places


def test_storage_all_well(node: Node) -> None:
    answer = doctor(node, "storage")
    assert answer.wrong == {}, answer.all
    assert answer.facts["graphroot"].startswith(f"{node.graphroot} (")
    assert answer.facts["podman"].split(".")[0] in {"4", "5"}


def test_u40_nosuid_matters_to_vfs(node: Node) -> None:
    with mounted(node, "tmpfs", "nosuid,size=2g"):
        answer = doctor(node, "storage")
        assert answer.ids == {"info U40"}, answer.all
        conf = node.base / "storage.conf"
        conf.write_text(conf.read_text().replace('driver = "overlay"', 'driver = "vfs"'))
        answer = doctor(node, "storage")
        assert answer.ids == {"error U40", "error U81"}, answer.all
        assert "remount,suid" not in answer.wrong["U40"]["fix"]


def test_u40_a_graphroot_that_cannot_be_written(node: Node) -> None:
    os.chown(node.graphroot, 0, 0)
    answer = doctor(node, "storage")
    assert answer.ids == {"error U40"}, answer.all


def test_u41_no_space(node: Node) -> None:
    with mounted(node, "tmpfs", "size=4m"):
        answer = doctor(node, "storage", "live")
        assert answer.ids == {"error U41"}, answer.all
        (node.graphroot / "full").write_bytes(bytes(4 << 20))
        answer = doctor(node, "storage", "live")
        assert answer.ids == {"error U41"}, answer.all
        assert "0 MiB are free" in answer.wrong["U41"]["what"]


def test_u41_no_inodes(node: Node) -> None:
    with mounted(node, "tmpfs", "size=2g,nr_inodes=1"):
        answer = doctor(node, "storage", "live")
        assert answer.ids == {"error U41"}, answer.all
        assert answer.wrong["U41"]["evidence"] == "0 inodes free"


def test_u53_runroot_on_disk(node: Node) -> None:
    conf = node.base / "storage.conf"
    disk = Path(f"/var/tmp/{node.user.name}-runroot")
    conf.write_text(conf.read_text().replace(f'runroot = "{node.runroot}"', f'runroot = "{disk}"'))
    answer = doctor(node, "storage", CONTAINERS_STORAGE_CONF="", XDG_CONFIG_HOME=str(node.base / "etc"))
    assert "warning U53" not in answer.ids  # the file is not read
    (node.base / "etc/containers").mkdir(parents=True)
    (node.base / "etc/containers/storage.conf").write_text(conf.read_text())
    run("chown", "-R", f"{node.user.uid}:{node.user.gid}", str(node.base / "etc")).ok()
    answer = doctor(node, "storage", CONTAINERS_STORAGE_CONF="", XDG_CONFIG_HOME=str(node.base / "etc"))
    assert answer.ids - {"warning U81"} == {"warning U53"}, answer.all


@pytest.mark.parametrize(
    ("options", "severity"),
    [
        ('ignore_chown_errors = "true"', "info"),
        ('mount_program = "/nowhere/squashmount-mount"', "error"),
        ('mount_programm = "/bin/true"', "warning"),
    ],
)
def test_u81_options(node: Node, options: str, severity: str) -> None:
    conf = node.base / "storage.conf"
    conf.write_text(conf.read_text() + options + "\n")
    answer = doctor(node, "storage")
    assert answer.ids == {f"{severity} U81"}, answer.all


def test_u54_layers_of_another_range(node: Node) -> None:
    layer = node.graphroot / "overlay/abc/diff/etc"
    layer.mkdir(parents=True)
    (layer / "passwd").write_text("")
    run("chown", "-R", f"{node.user.uid}:{node.user.gid}", str(node.graphroot)).ok()
    start = node.user.uid * 100000
    os.chown(layer / "passwd", start + 33, start + 33)
    assert doctor(node, "storage").ids == set()
    with changed("/etc/subuid", f"{node.user.name}:{start}:", f"{node.user.name}:{start + 1000000}:"):
        answer = doctor(node, "storage")
    assert answer.ids == {"error U54"}, answer.all
    assert f"1 of 3 files looked at, ids {start + 33}" in answer.wrong["U54"]["evidence"]


def test_u54_against_a_baseline(node: Node, lab: Path) -> None:
    command = str(node.product / "bin/squashmount-conf")
    kept = lab / "baseline"
    start = node.user.uid * 100000
    ids = ((start, 65536),)
    old = Baseline((Record(node.user.uid, node.user.name, ids, ids, "2024-01-01"),), "2024-01-01")
    kept.write_text(as_text(old))
    only = (command, "doctor", "--json", "--only", "U54", "--baseline", str(kept))
    assert json.loads(node.run(*only).ok())["findings"] == []
    with changed("/etc/subuid", f"{node.user.name}:{start}:", f"{node.user.name}:{start + 1000000}:"):
        done = node.run(*only)
    (found,) = json.loads(done.out)["findings"]
    assert done.code == 11
    assert found["id"] == "U54"
    assert found["what"].endswith(": moved.")
    kept.write_text("{}")
    assert "cannot be read" in node.run(*only).out
    assert node.run(*only[:-1], "/nowhere").code == 2


@contextmanager
def changed(path: str, old: str, new: str) -> Iterator[None]:
    """Replace text in a file of the lab's /etc."""
    before = Path(path).read_text()
    assert old in before
    Path(path).write_text(before.replace(old, new))
    try:
        yield
    finally:
        Path(path).write_text(before)


# The session


def test_session_all_well(node: Node) -> None:
    node.podman("info").ok()
    answer = doctor(node, "session", "system")
    assert answer.wrong == {}, answer.all
    assert answer.facts["podman info"].startswith("answers in ")
    assert answer.facts["/dev/fuse"] == "opens"
    assert answer.facts["kernel"] == os.uname().release
    for program in ("crun", "fuse-overlayfs", "mksquashfs", "squashfuse_ll"):
        assert re.search(rf"\b{program} \d", answer.facts["programs"]), answer.facts


def test_podman_is_not_asked_where_it_would_make_something(node: Node) -> None:
    for made in (True, False):
        answer = doctor(node, "session", "storage", "live")
        assert answer.wrong == {}, answer.all
        assert "not asked" in answer.facts["podman info"]
        if made:
            assert list(node.graphroot.iterdir()) == []
            node.graphroot.rmdir()
    assert not node.graphroot.exists()


@pytest.mark.parametrize(
    ("fault", "severity"),
    [("unset", "warning"), ("missing", "error"), ("foreign", "error"), ("0755", "warning"), ("0777", "error")],
)
def test_u50_runtime_directory(node: Node, bob: User, fault: str, severity: str) -> None:
    runtime = node.runtime / "x"
    if fault != "missing":
        runtime.mkdir(mode=0o700)
        owner = bob if fault == "foreign" else node.user
        os.chown(runtime, owner.uid, owner.gid)
    if fault.startswith("0"):
        runtime.chmod(int(fault, 8))
    answer = doctor(node, "session", XDG_RUNTIME_DIR="" if fault == "unset" else str(runtime))
    assert f"{severity} U50" in answer.ids, answer.all
    assert answer.ids <= {f"{severity} U50", "info U52"}, answer.all


def test_without_a_runtime_directory_nothing_is_left(node: Node) -> None:
    """Podman makes TMPDIR/containers-user-UID then, even to tell its version."""
    folder = node.base / "tmp"
    folder.mkdir()
    os.chown(folder, node.user.uid, node.user.gid)
    before = sorted(os.listdir("/tmp"))
    answer = doctor(node, "system", "podman_view", "storage", XDG_RUNTIME_DIR="", TMPDIR=str(folder))
    assert "podman" in answer.facts, answer.all
    assert list(folder.iterdir()) == []
    assert sorted(os.listdir("/tmp")) == before


def test_podman_tells_its_version_without_a_place_to_write(node: Node) -> None:
    node.runtime.chmod(0o500)
    try:
        answer = doctor(node, "system", "storage", TMPDIR="/nowhere")
    finally:
        node.runtime.chmod(0o700)
    assert "podman" in answer.facts, answer.all
    assert "error U80" not in answer.ids, answer.all


def processes(user: User) -> dict[str, str]:
    """Return the command of every process of a user, by pid."""
    names = [one.name for one in Path("/proc").iterdir() if one.name.isdigit()]
    lines = run("ps", "-o", "pid=,uid=,args=", "-p", ",".join(names)).out.splitlines()
    found = (line.split(None, 2) for line in lines)
    return {pid: args for pid, uid, args in found if int(uid) == user.uid}


def test_podman_info_leaves_no_pause_process(node: Node) -> None:
    node.podman("info").ok()
    node.podman("system", "migrate").ok()
    earlier = processes(node.user)  # pause processes of other tests' runtime directories
    answer = doctor(node, "session")
    assert answer.facts["podman info"].startswith("answers in ")
    assert processes(node.user) == earlier
    assert list(node.runtime.rglob("pause.pid")) == []
    node.podman("unshare", "true").ok()
    before = processes(node.user)
    assert [words for pid, words in before.items() if pid not in earlier] == ["catatonit -P"]
    doctor(node, "session")
    assert processes(node.user) == before, "one that was there stays"
    node.podman("system", "migrate").ok()


def test_u51_pause_process_with_an_earlier_range(node: Node) -> None:
    node.podman("unshare", "true").ok()
    assert doctor(node, "session").wrong == {}
    start = node.user.uid * 100000
    with changed("/etc/subuid", f"{node.user.name}:{start}:", f"{node.user.name}:{start + 70000}:"):
        answer = doctor(node, "session")
        assert answer.ids == {"error U51"}, answer.all
        assert f"configured 0 {node.user.uid} 1, 1 {start + 70000} 65536" in answer.wrong["U51"]["evidence"]
        node.podman("system", "migrate").ok()
        assert doctor(node, "session").wrong == {}
        node.podman("system", "migrate").ok()


def pause_folder(node: Node) -> Path:
    """Return where this Podman keeps pause.pid: the lab's tmp_dir counts before 5 only."""
    folder = node.runtime / ("libpod/tmp" if podman_major() >= 5 else "libpod")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_u51_pause_pid_names_another_process(node: Node) -> None:
    folder = pause_folder(node)
    run("chown", "-R", str(node.user.uid), str(node.runtime)).ok()
    (folder / "pause.pid").write_text("1")
    answer = doctor(node, "session")
    assert answer.ids == {"error U51"}, answer.all
    assert "cannot re-exec process" in node.podman("unshare", "true").err
    assert node.podman("system", "migrate").code != 0
    fix = answer.wrong["U51"]["fix"]
    assert node.run("sh", "-c", fix).code == 0
    assert doctor(node, "session").wrong == {}
    node.podman("unshare", "true").ok()


@contextmanager
def in_a_namespace_of(uid: int) -> Iterator[int]:
    """Give the pid of somebody's process in a user namespace of its own, as of a container."""
    become = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "unshare", "-Ur")
    command = (*become, "sh", "-c", "echo; exec sleep 600")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("own", [False, True])
def test_u51_pause_pid_names_a_process_of_another_namespace(node: Node, own: bool) -> None:
    folder = pause_folder(node)
    run("chown", "-R", str(node.user.uid), str(node.runtime)).ok()
    uid = node.user.uid if own else node.user.uid + 1
    with in_a_namespace_of(uid) as pid:
        (folder / "pause.pid").write_text(str(pid))
        answer = doctor(node, "session")
        assert answer.ids == {"error U51"}, answer.all
        assert "no pause process" in answer.wrong["U51"]["what"]
        assert (f"belongs to uid {uid}" in answer.wrong["U51"]["evidence"]) != own
        assert node.podman("unshare", "grep", "-q", " 65536$", "/proc/self/uid_map").code != 0
        assert answer.wrong["U51"]["fix"] == f"rm {folder}/pause.pid"
        assert node.run("sh", "-c", answer.wrong["U51"]["fix"]).code == 0
        node.podman("unshare", "grep", "-q", " 65536$", "/proc/self/uid_map").ok()
        assert doctor(node, "session").wrong == {}
        assert os.path.exists(f"/proc/{pid}"), "nobody ended it"
    node.podman("system", "migrate").ok()


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo 'Error: something is wrong' >&2; exit 125", "`podman info` fails"),
        ("sleep 60", "did not answer in 8 s"),
    ],
)
def test_u82_podman_that_fails_or_hangs(node: Node, script: str, what: str) -> None:
    folder = node.base / "bin"
    folder.mkdir()
    program = folder / "podman"
    program.write_text(f'#!/bin/sh\ncase "$1" in --version) echo podman version 4.3.1; exit;; esac\n{script}\n')
    program.chmod(0o755)
    (node.graphroot / "storage.lock").touch()
    answer = doctor(node, "session", PATH=f"{folder}:/usr/bin:/bin")
    assert answer.ids == {"error U82"}, answer.all
    assert what in answer.wrong["U82"]["what"]
    assert answer.all["seconds"] < 12


def test_u82_home(node: Node) -> None:
    answer = doctor(node, "session", HOME=f"{node.base}/nowhere")
    assert answer.ids == {"warning U82"}, answer.all


# The node


@pytest.mark.parametrize(("fault", "word"), [("closed", "chmod 0666"), ("missing", "modprobe")])
def test_u70_fuse(node: Node, fault: str, word: str) -> None:
    device = Path("/dev/fuse")
    try:
        device.chmod(0o600)
        if fault == "missing":
            device.rename("/dev/fuse-away")
        answer = doctor(node, "system")
    finally:
        if fault == "missing":
            Path("/dev/fuse-away").rename(device)
        device.chmod(0o666)
    assert answer.ids == {"error U70"}, answer.all
    assert word in answer.wrong["U70"]["fix"]


def test_u71_fusermount3(node: Node) -> None:
    with in_its_place("/usr/bin/fusermount3"):
        answer = doctor(node, "system")
    assert answer.ids == {"warning U71"}, answer.all


def test_u80_no_podman_and_no_runtime(node: Node) -> None:
    with in_its_place("/usr/bin/crun", mode=0o600), in_its_place("/usr/sbin/runc", mode=0o600):
        answer = doctor(node, "system")
    assert answer.ids == {"error U80"}, answer.all
    with in_its_place("/usr/bin/podman", b"#!/bin/sh\necho podman version 3.4.4\n"):
        answer = doctor(node, "system")
    assert "too old" in answer.wrong["U80"]["what"], answer.all


def test_u61_a_cgroup_of_somebody_else(node: Node) -> None:
    folder = Path(f"/sys/fs/cgroup/{node.user.name}")
    assert f"/{node.user.name}: yours" in doctor(node, "system").facts["cgroup"]
    os.chown(folder, 0, 0)
    try:
        answer = doctor(node, "system")
    finally:
        os.chown(folder, node.user.uid, node.user.gid)
    (found,) = answer.all["findings"]
    assert (found["id"], found["severity"]) == ("U61", "info")
    assert "not yours" in found["evidence"]


# Squash files and stores


def make_store(node: Node, name: str) -> Path:
    store = node.base / name
    for part in ("overlay-images/images", "overlay-layers/layers"):
        (store / part).parent.mkdir(parents=True)
        (store / f"{part}.json").write_text("[]")
        (store / f"{part}.lock").write_text("")
    (store / "overlay").mkdir()
    node.stores = (*node.stores, store)
    node.configure()
    return store


def test_squash_all_well(node: Node) -> None:
    store = make_store(node, "store")
    before = everything(node.user.home)
    answer = doctor(node, "squash", "storage")
    assert answer.ids == set(), answer.all
    assert answer.facts["engine"] == "wire (auto in the configuration)"
    assert answer.facts["overlay"] == "kernel (fastest)"
    assert answer.facts["stores"] == str(store)
    assert "FUSE and kernel overlay" in answer.facts["self-test"]
    assert everything(node.user.home) == before
    assert "squashmount-doctor" not in Path("/proc/mounts").read_text()


def test_s01_a_configuration_that_cannot_be(node: Node) -> None:
    answer = doctor(node, "squash", SQUASHMOUNT_ENGINE="warp")
    assert answer.ids == {"error S01"}, answer.all
    answer = doctor(node, "squash", SQUASHMOUNT_OVERLAY="fuse")
    assert answer.facts["overlay"] == "fuse (forced by the configuration)"


def test_s02_a_store_that_is_missing(node: Node) -> None:
    store = make_store(node, "store")
    run("rm", "-r", str(store)).ok()
    answer = doctor(node, "squash")
    assert answer.ids == {"error S02"}, answer.all
    assert str(store) in answer.wrong["S02"]["what"]


HANG = """
import os, sys, time
from squashmount.server.fusemount import mount_fuse
fuse = mount_fuse(sys.argv[1], source="hangs")
print("mounted", flush=True)
time.sleep(100)
"""


def test_s02_a_store_that_hangs_hides_no_other(node: Node) -> None:
    """A FUSE file system whose server never answers: as a file server that is gone."""
    store, other = make_store(node, "store"), make_store(node, "other")
    (other / "overlay-images/images.json").write_text("[{")
    python = str(node.product / "bin/python")
    with subprocess.Popen([python, "-I", "-c", HANG, str(store)], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == b"mounted\n"
            answer = doctor(node, "squash")
        finally:
            run("umount", "-l", str(store)).ok()
            server.kill()
    assert answer.ids == {"error S02", "error S04"}, answer.all
    assert f"{store} does not answer in" in answer.wrong["S02"]["what"]
    assert str(other) in answer.wrong["S04"]["what"]
    assert answer.all["seconds"] < 5


def test_s03_a_lock_that_hangs(node: Node) -> None:
    store = make_store(node, "store")
    with (store / "overlay-images/images.lock").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        answer = doctor(node, "squash")
    assert answer.ids == {"error S03"}, answer.all
    assert "is not granted" in answer.wrong["S03"]["what"]
    assert answer.all["seconds"] < 5


def test_s05_without_fuse(node: Node) -> None:
    device = Path("/dev/fuse")
    device.chmod(0o600)
    try:
        answer = doctor(node, "squash")
        assert answer.ids == {"error S05"}, answer.all
        assert "chmod 0666" in answer.wrong["S05"]["fix"]
        assert doctor(node, "squash", "system").ids == {"error U70"}, "one cause has one name"
    finally:
        device.chmod(0o666)


def test_s07_a_state_directory_others_can_write(node: Node) -> None:
    make_store(node, "store")
    state = node.runtime / "squashmount"
    state.mkdir()
    os.chown(state, node.user.uid, node.user.gid)
    state.chmod(0o777)
    answer = doctor(node, "squash")
    assert answer.ids == {"error S07"}, answer.all


def test_s08_in_a_job(node: Node) -> None:
    answer = doctor(node, "squash", SLURM_JOB_ID="7", SLURM_STEP_ID="0")
    assert answer.wrong == {}, answer.all
    assert answer.facts["Slurm"] == "job 7, step 0"
    answer = doctor(node, "squash", SLURM_JOB_ID="7", CONTAINERS_CONF="/dev/null", TMPDIR="/nowhere")
    assert answer.ids == {"error S08", "warning S08"}, answer.all


def test_the_whole_doctor_is_fast_and_content(node: Node) -> None:
    make_store(node, "store")
    command = (str(node.product / "bin/squashmount-conf"), "doctor", "--json")
    node.run(*command)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = json.loads(node.run(*command).ok())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("processor seconds", after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    wrong = [one for one in answer["findings"] if one["severity"] != "info"]
    assert wrong == []
    assert answer["skipped"] == {}


def test_root_is_examined_as_well(product: Path, lab: Path) -> None:
    home = root_user(lab).home
    before = Path("/proc/mounts").read_text()
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "USER": "root"}
    done = run(str(product / "bin/squashmount-conf"), "doctor", "--json", env=environ)
    answer = json.loads(done.ok())
    assert [one for one in answer["findings"] if one["severity"] == "error"] == []
    assert "FUSE and kernel overlay" in answer["facts"]["self-test"]
    assert answer["facts"]["state of the servers"] == "/run/squashmount"
    assert Path("/proc/mounts").read_text() == before


def test_a_bundle_of_a_real_user(node: Node) -> None:
    path = node.base / "bundle.tar.gz"
    command = (str(node.product / "bin/squashmount-conf"), "doctor", "--only", "U40,U42", "--bundle", str(path))
    node.run(*command).ok()
    with tarfile.open(path) as tar:
        parts = {one.name.partition("/")[2]: tar.extractfile(one).read().decode() for one in tar}  # type: ignore[union-attr]
    assert path.stat().st_mode & 0o777 == 0o600
    for word in (node.user.name, "bob", str(node.user.home), os.uname().nodename):
        assert not any(word in text for text in parts.values()), word
    assert "USER:" in parts["subuid"]
    assert json.loads(parts["doctor.json"])["checked"] == ["U40", "U42"]
    assert node.run(*command).code == 2


def test_without_path_podman_finds_nothing(node: Node) -> None:
    done = node.run("env", "-u", "PATH", str(node.product / "bin/squashmount-conf"), "doctor", "--json")
    findings = [one for one in json.loads(done.out)["findings"] if one["severity"] == "error"]
    assert [one["what"] for one in findings] == ["PATH is not set."], findings


def test_a_fifo_for_a_configuration_hangs_no_check(node: Node) -> None:
    conf = node.base / "storage.conf"
    conf.unlink()
    os.mkfifo(conf)
    os.chown(conf, node.user.uid, node.user.gid)
    try:
        # the warning: without a configuration Podman would take vfs
        assert whole_doctor(node) == {"error U81", "warning U81"}
    finally:
        conf.unlink()
        node.configure()


def whole_doctor(node: Node, **environ: str) -> set[str]:
    """Return severity and id of every error and warning of the whole doctor."""
    words = [f"{key}={value}" for key, value in environ.items()]
    done = node.run("env", *words, str(node.product / "bin/squashmount-conf"), "doctor", "--json")
    findings = json.loads(done.out)["findings"]
    return {f"{one['severity']} {one['id']}" for one in findings if one["severity"] != "info"}


@contextmanager
def a_closed_device(_node: Node) -> Iterator[None]:
    Path("/dev/fuse").chmod(0o600)
    try:
        yield
    finally:
        Path("/dev/fuse").chmod(0o666)


@contextmanager
def a_held_lock(node: Node) -> Iterator[None]:
    with (make_store(node, "store") / "overlay-images/images.lock").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextmanager
def a_missing_store(node: Node) -> Iterator[None]:
    run("rm", "-r", str(make_store(node, "store"))).ok()
    yield


@contextmanager
def a_closed_graphroot(node: Node) -> Iterator[None]:
    os.chown(node.graphroot, 0, 0)
    yield


@contextmanager
def an_earlier_pause_process(node: Node) -> Iterator[None]:
    node.podman("unshare", "true").ok()
    start = node.user.uid * 100000
    with changed("/etc/subuid", f"{node.user.name}:{start}:", f"{node.user.name}:{start + 70000}:"):
        yield
        node.podman("system", "migrate").ok()


@contextmanager
def an_open_runtime_directory(node: Node) -> Iterator[None]:
    node.runtime.chmod(0o755)
    yield


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda node: mounted(node, "tmpfs", "size=4m"), "error U41"),
        (lambda node: mounted(node, "tmpfs", "size=2g,nr_inodes=1"), "error U41"),
        (lambda node: mounted(node, "ramfs", "mode=700"), "warning U45"),
        (lambda _node: in_its_place("/usr/bin/newuidmap"), "error U20"),
        (lambda _node: in_its_place("/usr/bin/fusermount3"), "warning U71"),
        (lambda _node: in_its_place("/usr/bin/crun", b"#!/bin/sh\nsleep 60\n"), "error U80"),
        (a_closed_device, "error U70"),
        (a_held_lock, "error S03"),
        (a_missing_store, "error S02"),
        (a_closed_graphroot, "error U40"),
        (an_earlier_pause_process, "error U51"),
        (an_open_runtime_directory, "warning U50"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_cause_has_one_name(
    node: Node, fault: Callable[[Node], AbstractContextManager[None]], expected: str
) -> None:
    with fault(node):
        assert whole_doctor(node) == {expected}
