"""migrate2scratch against a real Podman: what it makes, what it leaves behind, and how it fails."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Node, User, all_processes, run, wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


@pytest.fixture
def make_store(lab: Path, alice: User, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Make empty directories owned by a user."""

    def make(name: str = "dir", user: User = alice) -> Path:
        path = lab / f"{request.node.name[:40].replace('[', '-').rstrip(']')}-{name}"
        path.mkdir(mode=0o755)
        os.chown(path, user.uid, user.gid)
        return path

    return make


@pytest.fixture(scope="module")
def slow(login: Node, lab: Path, busybox: str) -> str:
    """An image whose squash takes seconds: 300 MB that xz has to work on."""
    assert busybox, "its fixture deletes all images first"
    tar = lab / "slow.tar"
    with tar.open("wb") as file:
        argv = ["tar", "-C", "/usr/lib", "-c", "python3", "python3.11", "gcc", "x86_64-linux-gnu"]
        subprocess.run(argv, stdout=file, stderr=subprocess.DEVNULL, check=False)
        file.truncate(min(file.tell(), 300 << 20))
    tar.chmod(0o644)
    # a cut tar: import what is whole
    run(
        "bash", "-c", f"mkdir {lab}/slow && tar -C {lab}/slow -xf {tar} 2>/dev/null; tar -C {lab}/slow -cf {tar} ."
    ).ok()
    run("rm", "-rf", str(lab / "slow")).ok()
    login.podman("import", "-q", str(tar), "slow:1", timeout=300).ok()
    return "localhost/slow:1"


def build(node: Node, name: str, *lines: str, base: str = "scratch") -> str:
    context = node.base / f"ctx-{name.replace('/', '-').replace(':', '-')}"
    context.mkdir()
    (context / "Containerfile").write_text("\n".join((f"FROM {base}", *lines)) + "\n")
    node.podman("build", "--isolation=chroot", "--network=host", "-q", "-t", name, str(context)).ok()
    return node.podman("image", "inspect", "--format", "{{.Id}}", name).ok()


def listed(node: Node) -> list[str]:
    return sorted(node.podman("images", "-a", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}").ok().splitlines())


def capsules(store: Path) -> dict[str, dict[str, object]]:
    files = (store / "squashmount/capsules").glob("*/capsule.json")
    return {path.parent.name: json.loads(path.read_text()) for path in files}


def squashes(store: Path) -> dict[str, str]:
    files = (store / "squashmount/capsules").glob("*/image.squashfs")
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def processes(*words: str) -> list[str]:
    found = []
    for pid in all_processes():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if any(word in line for word in words):
            found.append(f"{pid} {line}")
    return found


def assert_nothing_left(node: Node) -> None:
    wait_for(lambda: not processes("migrate.inside", "mksquashfs /"), "no process is left")
    counts = node.runroot / "overlay-layers/mountpoints.json"
    assert not counts.exists() or json.loads(counts.read_text() or "[]") in (None, [])
    mounts = node.podman("unshare", "cat", "/proc/self/mountinfo").ok()
    assert not [line for line in mounts.splitlines() if line.split()[4].endswith("/merged")]
    assert not processes("system service")


@dataclass(frozen=True)
class Bench:
    """What most tests here need. `name` is an image that `login` has pulled; its squash is in `store`."""

    login: Node
    node: Callable[..., Node]
    directory: Callable[..., Path]
    name: str
    alice: User
    store: Path

    def compute(self, *stores: Path) -> Node:
        return self.node(self.alice, stores=stores)


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    given = [
        request.getfixturevalue(name) for name in ("login", "make_node", "make_store", "busybox", "alice", "store")
    ]
    made = Bench(*given)
    yield made
    assert_nothing_left(made.login)


def test_the_same_image_gives_the_same_bytes_from_any_pull_and_without_an_id_range(
    bench: Bench, bob: User, solo: User
) -> None:
    made = bench.directory("alice")
    bench.login.migrate("mig", bench.name, str(made)).ok()
    for user, options in ((bob, {}), (solo, {"ignore_chown_errors": True})):
        node = bench.node(user, **options)
        node.podman("pull", "--tls-verify=false", bench.name).ok()
        directory = bench.directory(user.name, user)
        node.migrate("mig", bench.name, str(directory)).ok()
        assert squashes(directory) == squashes(made), user.name
        restored = next(iter(capsules(directory).values()))["restored_owners"]
        assert (restored != 0) == (user is solo)


def test_identity_names_and_history_stay(bench: Bench) -> None:
    login, directory = bench.login, bench.directory()
    login.podman("tag", bench.name, "other/name:x", "127.0.0.1:5/plain").ok()
    login.migrate("mig", bench.name, str(directory)).ok()
    compute = bench.compute(directory)
    template = "{{.Id}} {{.Digest}} {{.Created}} {{json .Config}} {{json .RootFS}} {{json .History}}"
    one, other = (node.podman("image", "inspect", "--format", template, bench.name).ok() for node in (login, compute))
    assert one == other
    template = "{{json .RepoTags}}"
    tags = [node.podman("image", "inspect", "--format", template, "other/name:x").ok() for node in (login, compute)]
    assert sorted(json.loads(tags[0])) == sorted(json.loads(tags[1]))
    assert len(json.loads(tags[1])) == 3
    assert login.migrate("mig", "127.0.0.1:5/plain", str(directory)).ok().endswith("with all its names")
    login.podman("untag", bench.name, "localhost/other/name:x", "127.0.0.1:5/plain:latest").ok()


def test_a_new_tag_is_recorded_without_squashing(bench: Bench) -> None:
    directory = bench.directory()
    bench.login.migrate("mig", bench.name, str(directory)).ok()
    file = next((directory / "squashmount/capsules").glob("*/image.squashfs"))
    before = file.stat().st_mtime_ns
    bench.login.podman("tag", bench.name, "localhost/second:2").ok()
    done = json.loads(bench.login.migrate("mig", "--json", "second:2", str(directory)).ok())
    assert [action.partition(" ")[0] for action in done["actions"]] == ["name"]
    assert file.stat().st_mtime_ns == before
    assert "localhost/second:2" in (directory / "overlay-images/images.json").read_text()
    bench.login.podman("untag", bench.name, "localhost/second:2").ok()


def test_a_moved_tag_moves_and_the_old_image_stays_nameless(bench: Bench) -> None:
    directory = bench.directory()
    compute = bench.compute(directory)
    first = build(bench.login, "moving:1", "LABEL version=1", base=bench.name)
    bench.login.migrate("mig", "moving:1", str(directory)).ok()
    run("rm", "-rf", str(bench.login.base / "ctx-moving-1")).ok()
    second = build(bench.login, "moving:1", "RUN echo 2 > /work/version", base=bench.name)
    bench.login.migrate("mig", "moving:1", str(directory)).ok()
    assert listed(compute) == ["<none>:<none> true", "localhost/moving:1 true"]
    assert compute.podman("run", "--rm", "moving:1", "cat", "/work/version").ok() == "2"
    assert compute.podman("run", "--rm", first, "ls", "/work").ok() == "mine"
    bench.login.migrate("prune", str(directory)).ok()
    assert list(capsules(directory)) == [second]
    bench.login.podman("rmi", "-f", first, second).ok()


def test_images_with_the_same_layers_share_a_squash_but_not_its_path(bench: Bench) -> None:
    directory = bench.directory()
    twin = build(bench.login, "twin:1", "ENV TWIN=yes", base=bench.name)
    original = bench.login.podman("image", "inspect", "--format", "{{.Id}}", bench.name).ok()
    bench.login.migrate("mig", bench.name, str(directory)).ok()
    layers = [
        set(bench.login.podman("image", "inspect", "--format", "{{.RootFS.Layers}}", name).ok().split())
        for name in (bench.name, twin)
    ]
    if layers[0] == layers[1]:
        assert "share" in bench.login.migrate("mig", "twin:1", str(directory)).ok()
        files = [directory / f"squashmount/capsules/{name}/image.squashfs" for name in (original, twin)]
        assert files[0].samefile(files[1])
    else:
        bench.login.migrate("mig", "twin:1", str(directory)).ok()
    bench.login.migrate("rmi", "--force", original, str(directory)).ok()
    compute = bench.compute(directory)
    assert compute.podman("run", "--rm", "twin:1", "sh", "-c", "echo $TWIN; cat mine").ok().split() == ["yes", "33"]
    bench.login.podman("rmi", "-f", twin).ok()


def test_pulling_another_image_with_the_same_layers_gets_whole_layers(bench: Bench, registry_address: str) -> None:
    """podman-hpc#172: Podman reuses layer records of read-only stores; ours stand for no layer it could look for."""
    name = f"{registry_address}/derived:1"
    build(bench.login, name, "RUN echo derived > /work/derived", base=bench.name)
    bench.login.podman("push", "--tls-verify=false", name).ok()
    bench.login.podman("rmi", "-f", name).ok()
    node = bench.node(bench.alice, stores=(bench.store,))
    node.podman("pull", "--tls-verify=false", name).ok()
    assert node.podman("run", "--rm", name, "cat", "/work/derived", "/work/mine").ok().split() == ["derived", "33"]


def test_child_of_a_squashed_only_image(bench: Bench) -> None:
    node = bench.node(bench.alice, stores=(bench.store,))
    build(node, "child:1", "RUN rm /work/mine && echo child > /work/child && chown 33:33 /work/child", base=bench.name)
    directory = bench.directory()
    node.migrate("mig", "child:1", str(directory)).ok()
    other = bench.node(bench.alice, stores=(directory,))
    assert other.podman("run", "--rm", "child:1", "sh", "-c", "ls /work; stat -c %u /work/child").ok().split() == [
        "child",
        "33",
    ]
    assert_nothing_left(node)


def test_child_of_a_squashed_only_image_without_an_id_range(bench: Bench, solo: User) -> None:
    """The owners of the base come from its squash, those of the child's layer from its headers."""
    first, second = bench.directory("first", solo), bench.directory("second", solo)
    puller = bench.node(solo, ignore_chown_errors=True)
    puller.podman("pull", "--tls-verify=false", bench.name).ok()
    puller.migrate("mig", bench.name, str(first)).ok()
    node = bench.node(solo, stores=(first,), ignore_chown_errors=True)
    build(node, "child:1", "COPY Containerfile /work/child", base=bench.name)  # RUN needs more than one id
    node.migrate("mig", "child:1", str(second)).ok()
    squash = next((second / "squashmount/capsules").glob("*/image.squashfs"))
    listing = run("unsquashfs", "-lln", str(squash)).ok()
    owners = {line.rsplit("/", 1)[1]: line.split()[1] for line in listing.splitlines() if "/work/" in line}
    assert owners == {"mine": "33/33", "child": "0/0"}


def test_a_running_service_sees_what_is_new(bench: Bench) -> None:
    directory = bench.directory()
    bench.login.migrate("init", str(directory)).ok()
    node = bench.node(bench.alice, stores=(directory,))
    socket = node.runtime / "s.sock"
    images = ("--url", f"unix://{socket}", "images", "--format", "json")
    words = [*bench.alice.prefix(), "env", "-i", *(f"{k}={v}" for k, v in node.environment().items())]
    words += ["PATH=/usr/bin:/usr/sbin:/bin", f"HOME={bench.alice.home}", "podman", "system", "service", "--time=60"]
    with subprocess.Popen([*words, f"unix://{socket}"], stderr=subprocess.DEVNULL, start_new_session=True) as service:
        try:
            wait_for(socket.exists, "the service listens")
            assert not json.loads(node.podman(*images).ok())
            bench.login.migrate("mig", bench.name, str(directory)).ok()
            assert bench.name in str(json.loads(node.podman(*images).ok()))
            bench.login.migrate("rmi", bench.name, str(directory)).ok()
            assert not json.loads(node.podman(*images).ok())
        finally:
            os.killpg(service.pid, signal.SIGKILL)


def test_a_container_outlives_rmi_and_starts_again(bench: Bench) -> None:
    directory = bench.directory()
    bench.login.migrate("mig", bench.name, str(directory)).ok()
    node = bench.node(bench.alice, stores=(directory,))
    node.podman("run", "-d", "--name", "job", bench.name, "sleep", "600").ok()
    bench.login.migrate("rmi", bench.name, str(directory)).ok()
    assert listed(node) == []
    assert node.podman("exec", "job", "cat", "/work/mine").ok() == "33"
    node.podman("stop", "-t0", "job").ok()
    wait_for(lambda: not node.servers(), "the server ends: the next start has to find the squash again")
    node.podman("start", "job").ok()
    assert node.podman("exec", "job", "cat", "/work/mine").ok() == "33"
    node.podman("restart", "-t0", "job").ok()
    assert node.podman("exec", "job", "cat", "/work/mine").ok() == "33"
    node.podman("rm", "-f", "-t0", "job").ok()
    bench.login.migrate("prune", "--now", str(directory)).ok()
    assert os.listdir(directory / "squashmount/trash") == []
    assert os.listdir(directory / "overlay") == ["l"]
    assert os.listdir(directory / "overlay/l") == []


@pytest.mark.parametrize("driver", ["fuse-overlayfs", "vfs"])
def test_other_drivers_of_the_source(bench: Bench, driver: str) -> None:
    node = bench.node(bench.alice, mount_program="/usr/bin/fuse-overlayfs" if driver == "fuse-overlayfs" else "")
    if driver == "vfs":
        path = node.base / "storage.conf"
        path.write_text(path.read_text().replace('driver = "overlay"', 'driver = "vfs"'))
    node.podman("pull", "--tls-verify=false", bench.name).ok()
    directory = bench.directory()
    node.migrate("mig", bench.name, str(directory)).ok()
    assert squashes(directory).items() <= squashes(bench.store).items()
    assert not processes("fuse-overlayfs")
    assert_nothing_left(node)


def killed(node: Node, store: Path, *words: str, after: float, number: int) -> int:
    argv = [str(node.product / "bin/migrate2scratch"), *words, str(store)]
    full = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(node.user.home), **node.environment()}
    words_of_env = [f"{key}={value}" for key, value in full.items()]
    with subprocess.Popen(
        [*node.user.prefix(), "env", "-i", *words_of_env, *argv], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as child:
        try:
            return child.wait(after)
        except subprocess.TimeoutExpired:
            os.kill(child.pid, number)
            return child.wait(20)


def test_killed_at_ten_points(bench: Bench, slow: str) -> None:
    directory = bench.directory()
    bench.login.migrate("mig", bench.name, str(directory)).ok()
    node = bench.node(bench.alice, stores=(directory,))
    before = listed(node)
    began = time.monotonic()
    bench.login.migrate("mig", slow, str(directory)).ok()
    duration = time.monotonic() - began
    bench.login.migrate("rmi", slow, str(directory)).ok()
    temporary = bench.directory("tmp")
    bench.login.env["TMPDIR"] = str(temporary)
    for point in range(10):
        killed(bench.login, directory, "mig", slow, after=duration * (point + 0.5) / 10, number=signal.SIGKILL)
        shown = listed(node)
        if shown != before:
            assert shown == sorted([*before, f"{slow} true"])
            bench.login.migrate("rmi", slow, str(directory)).ok()
        assert node.podman("run", "--rm", bench.name, "cat", "/work/mine").ok() == "33"
    assert_nothing_left(bench.login)
    del bench.login.env["TMPDIR"]
    assert os.listdir(temporary) == []
    bench.login.migrate("mig", slow, str(directory)).ok()
    assert f"{slow} true" in listed(node)
    assert bench.login.migrate("verify", "--full", str(directory)).ok().endswith("is sound")
    assert os.listdir(directory / "squashmount/staging") == os.listdir(directory / "squashmount/lock") == []
    assert f"{slow} true" in listed(node)


def test_several_at_once(bench: Bench, slow: str) -> None:
    """Two of the same image: one squashes, the other waits and finds it done. Another image does not wait for them."""
    directory = bench.directory()
    bench.login.migrate("init", str(directory)).ok()
    with ThreadPoolExecutor() as pool:
        same = [pool.submit(bench.login.migrate, "mig", slow, str(directory)) for _ in range(2)]
        time.sleep(0.8)
        other = pool.submit(bench.login.migrate, "mig", bench.name, str(directory))
        other.result().ok()
        outputs = [done.result().ok() for done in same]
    assert sorted("KiB blocks" in output for output in outputs) == [False, True]
    assert len(capsules(directory)) == 2
    assert bench.login.migrate("verify", "--full", str(directory)).ok().endswith("is sound")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(bench: Bench, number: int, slow: str) -> None:
    directory = bench.directory()
    began = time.monotonic()
    assert killed(bench.login, directory, "mig", "--compressor=xz", slow, after=2.5, number=number) == 130
    assert time.monotonic() - began < 8
    for name in ("staging", "lock", "trash", "capsules", "names"):
        assert os.listdir(directory / "squashmount" / name) == [], name
    assert_nothing_left(bench.login)


def test_no_space_leaves_the_store_as_it_was(bench: Bench, slow: str) -> None:
    directory = bench.directory()
    run(
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size=8m,mode=755,uid={bench.alice.uid},gid={bench.alice.gid}",
        "tmpfs",
        str(directory),
    ).ok()
    try:
        bench.login.migrate("mig", bench.name, str(directory)).ok()
        before = {path: path.lstat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
        done = bench.login.migrate("mig", slow, str(directory))
        assert (done.code, "No space" in done.err) == (6, True), done
        assert {path: path.lstat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before
        node = bench.node(bench.alice, stores=(directory,))
        assert listed(node) == [f"{bench.name} true"]
        node.close()
    finally:
        run("umount", "-l", str(directory)).ok()


def test_somebody_elses_directory(bench: Bench, bob: User) -> None:
    done = bench.login.migrate("mig", bench.name, str(bench.directory("bob", bob)))
    assert done.code == 6
    assert "not writable for you" in done.err


def test_names_that_are_not_there(bench: Bench) -> None:
    directory = str(bench.directory())
    done = bench.login.migrate("mig", bench.name.replace("busybox", "busibox"), directory)
    assert (done.code, f"similar: {bench.name}" in done.err, "podman pull" in done.err) == (3, True, True)
    assert bench.login.migrate("mig", bench.name, directory + "/none").code == 5


def test_an_ambiguous_id_lists_the_candidates(bench: Bench) -> None:
    images = [build(bench.login, f"many:{number}", f"LABEL number={number}") for number in range(17)]
    firsts = [image.removeprefix("sha256:")[0] for image in images]
    prefix = next(first for first in firsts if firsts.count(first) > 1)
    done = bench.login.migrate("mig", prefix, str(bench.directory()))
    assert done.code == 4
    assert len([line for line in done.err.splitlines() if line.strip().startswith(prefix)]) >= 2
    bench.login.podman("rmi", "-f", *images).ok()


def test_rootful(product: Path, lab: Path) -> None:
    base = lab / "rootful"
    (base / "ctx").mkdir(parents=True)
    tree = lab / "rootful-tree"
    (tree / "dev").mkdir(parents=True)
    run("mknod", str(tree / "dev/null"), "c", "1", "3").ok()
    run("mknod", str(tree / "block"), "b", "7", "0").ok()
    (tree / "cap").write_text("x")
    run("setcap", "cap_net_raw+ep", str(tree / "cap")).ok()
    os.setxattr(tree / "cap", "user.mine", b"value")
    run("tar", "-C", str(tree), "--xattrs", "--xattrs-include=*", "-cf", str(base / "ctx/t.tar"), ".").ok()
    (base / "ctx/Containerfile").write_text("FROM scratch\nADD t.tar /\n")
    roots = (f"--root={base}/g", f"--runroot={base}/r")
    run("podman", *roots, "build", "--isolation=chroot", "--network=host", "-q", "-t", "odd:1", str(base / "ctx")).ok()
    (base / "dir").mkdir()
    run(str(product / "bin/migrate2scratch"), "mig", *roots, "odd:1", str(base / "dir")).ok()
    squash = next((base / "dir/squashmount/capsules").glob("*/image.squashfs"))
    run("unsquashfs", "-d", str(base / "out"), str(squash)).ok()
    assert (base / "out/dev/null").is_char_device()
    assert (base / "out/block").is_block_device()
    assert "cap_net_raw=ep" in run("getcap", str(base / "out/cap")).ok()
    assert os.getxattr(base / "out/cap", "user.mine") == b"value"
    run("podman", *roots, "rmi", "-af").ok()
    for path in (base / "g/overlay", base / "g"):
        run("umount", "-l", str(path))
    run("rm", "-rf", "--one-file-system", str(base)).ok()
