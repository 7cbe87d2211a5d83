"""The life of the servers: shared, started once, ended by themselves, replaced when they were killed."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Node, User, run, wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


@pytest.fixture
def node(compute: Node, busybox: str) -> Node:
    assert busybox
    return compute


def ps(node: Node) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(node.squashmount("ps", "--json").ok())
    return rows


def start_many(node: Node, count: int, *argv: str) -> list[subprocess.Popen[bytes]]:
    environ = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": str(node.user.home), "USER": node.user.name}
    words = [f"{key}={value}" for key, value in {**environ, **node.environment()}.items()]
    command = [*node.user.prefix(), "env", "-i", *words, "podman", *argv]
    pipe = subprocess.PIPE
    home = str(node.user.home)
    return [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=home) for _ in range(count)
    ]


def test_32_containers_in_the_same_instant_share_one_server(node: Node, busybox: str) -> None:
    node.env["SQUASHMOUNT_LINGER"] = "5"
    # the container judges what it read: Podman 4.3 sometimes loses the output of a container that ends at once
    script = '[ "$(cat /work/mine)" = 33 ] && [ "$(ls /work)" = mine ] || exit 7'
    started = start_many(node, 32, "run", "--rm", busybox, "sh", "-c", script)
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert ended == [(b"", 0)] * 32
    assert node.log().count("serving ") == 1
    (server,) = ps(node)
    assert server["state"] == "serving"
    wait_for(lambda: not node.servers(), "the server ends")
    assert sorted(path.name for path in node.state().iterdir()) == ["log"]
    assert node.podman("ps", "-aq").ok() == ""


def test_ps_shows_users_hits_and_memory(node: Node, busybox: str) -> None:
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    node.podman("exec", "kept", "sh", "-c", "cat /bin/busybox > /dev/null").ok()
    stats = node.state() / next(path.name for path in node.state().iterdir() if path.is_dir()) / "stats.json"
    wait_for(stats.exists, "the worker publishes its counters")
    (server,) = ps(node)
    (user,) = server["users"]  # type: ignore[misc]
    assert user.endswith("/merged")
    assert server["pss_kib"] > 1000  # type: ignore[operator]
    assert server["stats"]["read"] > 0  # type: ignore[index]
    text = node.squashmount("ps").ok()
    assert "SQUASH" in text
    assert "image.squashfs" in text
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_a_running_container_keeps_its_server_and_the_next_one_uses_it(node: Node, busybox: str) -> None:
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    run("sleep", "3").ok()  # three times the linger time
    assert node.podman("exec", "kept", "cat", "/work/mine").ok() == "33"
    node.podman("run", "--rm", busybox).ok()
    assert node.log().count("serving ") == 1
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_a_killed_supervisor_is_replaced_and_hangs_nobody(node: Node, busybox: str) -> None:
    node.env["SQUASHMOUNT_LINGER"] = "60"
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    (server,) = ps(node)
    os.kill(int(str(server["supervisor"])), signal.SIGKILL)
    wait_for(lambda: not node.servers(), "worker and supervisor end together")
    # the old container cannot read any more, but it gets an error instead of hanging
    assert node.run("timeout", "20", "podman", "exec", "kept", "cat", "/etc/passwd").code not in {0, 124}
    assert node.podman("run", "--rm", busybox).ok() == "hello from /work"
    node.podman("rm", "-f", "-t0", "kept").ok()


def kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def test_a_killed_worker_is_replaced_under_running_containers(node: Node, busybox: str) -> None:
    node.env["SQUASHMOUNT_LINGER"] = "60"
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    killed = set()
    for _ in range(3):
        (server,) = ps(node)
        killed.add(server["worker"])
        os.kill(int(str(server["worker"])), signal.SIGKILL)
        # a name nobody has looked up yet: it must be asked of the new worker
        done = node.run("timeout", "20", "podman", "exec", "kept", "ls", f"/bin/none{len(killed)}")
        if kernel_version() >= (6, 9):
            assert "No such file" in done.err
        else:
            assert done.code not in {0, 124}
            break
    if kernel_version() >= (6, 9):
        assert len(killed) == 3
        assert node.podman("exec", "kept", "cat", "/work/mine").ok() == "33"
    node.podman("rm", "-f", "-t0", "kept").ok()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_a_jobs_end_take_the_image_from_nobody(node: Node, busybox: str, number: signal.Signals) -> None:
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    for pid in node.servers():
        os.kill(pid, number)
    assert node.podman("exec", "kept", "cat", "/work/mine").ok() == "33"
    node.podman("rm", "-f", "-t0", "kept").ok()
    wait_for(lambda: not node.servers(), "the server ends when it is unused")


def test_the_end_of_one_job_leaves_the_other_jobs_containers_alone(node: Node, busybox: str) -> None:
    """A resource manager kills the job's cgroup: the server must not be another job's."""
    top = Path("/sys/fs/cgroup") / node.user.name
    for job in ("job_1", "job_2"):
        (top / job / "step_0").mkdir(parents=True)
        for path in (top / job, top / job / "step_0", *(top / job).rglob("cgroup.procs")):
            os.chown(path, node.user.uid, node.user.gid)
        inside = f'echo 0 > {top}/{job}/step_0/cgroup.procs && exec "$0" "$@"'
        node.run("sh", "-c", inside, "podman", "run", "-d", "--name", job, busybox, "sleep", "600").ok()
    assert node.log().count("serving ") == 2
    (top / "job_1/cgroup.kill").write_text("1")
    assert node.podman("exec", "job_2", "cat", "/etc/passwd").ok().startswith("root")
    node.podman("rm", "-f", "-t0", "job_2").ok()
    # Podman 5 says that conmon is gone; the second time it agrees that the container is, too
    node.podman("rm", "-f", "-t0", "job_1")
    node.podman("rm", "-f", "-t0", "-i", "job_1").ok()
    wait_for(lambda: not node.servers(), "both servers end")
    for job in ("job_1", "job_2"):
        wait_for(lambda job=job: "populated 0" in (top / job / "cgroup.events").read_text(), "the cgroup is empty")
        run("find", str(top / job), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").ok()


def test_the_tasks_of_one_step_share_a_server(node: Node, busybox: str) -> None:
    """Slurm makes a cgroup for each task; 128 ranks of a node must not start 128 servers."""
    node.env["SQUASHMOUNT_LINGER"] = "20"
    top = Path("/sys/fs/cgroup") / node.user.name
    step = top / "job_7/step_0/user"
    for task in ("task_0", "task_1"):
        (step / task).mkdir(parents=True)
        for path in (top / "job_7", *(top / "job_7").rglob("*")):
            if path.is_dir() or path.name == "cgroup.procs":
                os.chown(path, node.user.uid, node.user.gid)
        inside = f'echo 0 > {step}/{task}/cgroup.procs && exec "$0" "$@"'
        assert node.run("sh", "-c", inside, "podman", "run", "--rm", busybox).ok() == "hello from /work"
    assert node.log().count("serving ") == 1
    (top / "job_7/cgroup.kill").write_text("1")
    wait_for(lambda: not node.servers(), "the server ends with its job")
    wait_for(lambda: "populated 0" in (top / "job_7/cgroup.events").read_text(), "the cgroup is empty")
    run("find", str(top / "job_7"), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").ok()


def test_a_mount_taken_away_by_hand_is_made_anew(node: Node, busybox: str) -> None:
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    (server,) = ps(node)
    node.podman("unshare", "umount", "-l", str(server["mountpoint"])).ok()
    assert node.podman("run", "--rm", busybox).ok() == "hello from /work"
    assert node.podman("exec", "kept", "cat", "/work/mine").ok() == "33"
    node.podman("rm", "-f", "-t0", "kept").ok()
    wait_for(lambda: not node.servers(), "both servers end")
    assert [path.name for path in node.state().iterdir()] == ["log"]


def test_directories_of_dead_namespaces_are_swept(node: Node, busybox: str) -> None:
    node.env["SQUASHMOUNT_LINGER"] = "60"
    dead = node.state() / "0123456789abcdef"
    node.podman("run", "--rm", busybox).ok()
    node.run("sh", "-c", f"mkdir -p {dead}/m {dead}/leases && touch {dead}/lock {dead}/leases/x").ok()
    (server,) = [row for row in ps(node) if row["state"] == "serving"]
    os.kill(int(str(server["supervisor"])), signal.SIGKILL)
    wait_for(lambda: not node.servers(), "the worker dies with its supervisor")
    node.podman("run", "--rm", busybox).ok()
    wait_for(lambda: not dead.exists(), "the next server sweeps")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("chmod 000 {}", "cannot be read"),
        ("rm {0} && mkfifo {0}", "is not a file"),
        ("rm {0} && mkdir {0}", "is not a file"),
        ("truncate -s 50 {}", "squash"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(
    make_node: Callable[..., Node], bob: User, store: Path, busybox: str, lab: Path, damage: str, says: str
) -> None:
    broken = Path(tempfile.mkdtemp(dir=lab))
    broken.chmod(0o755)
    run("cp", "-a", f"{store}/.", str(broken)).ok()
    for squash in broken.glob("squashmount/capsules/*/image.squashfs"):
        run("sh", "-c", damage.format(squash)).ok()
    node = make_node(bob, stores=(broken,))
    done = node.podman("run", "--rm", busybox, timeout=30)
    assert done.code != 0
    assert says in done.err
    assert "hint:" in done.err
    assert "Traceback" not in done.err
    assert not node.servers()


@pytest.mark.parametrize("overlay", ["kernel"])
def test_killing_everything_of_podman_ends_the_server(node: Node, busybox: str, overlay: str) -> None:
    """As an epilog or the OOM killer would: container, conmon and pause process gone in the same instant."""
    node.env |= {"SQUASHMOUNT_LINGER": "60", "SQUASHMOUNT_OVERLAY": overlay}
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    servers = set(node.servers())
    assert servers
    for pid in [*pids_of(node.user), *pids_in_cgroup(node.user.name)]:
        if pid not in servers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    wait_for(lambda: not node.servers(), "the mount namespace died, and the server with it", 15)


def pids_of(user: User) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            uids = next(line for line in (path / "status").read_text().splitlines() if line.startswith("Uid:"))
        except OSError:
            continue
        if int(uids.split()[1]) == user.uid:
            found.append(int(path.name))
    return found


def pids_in_cgroup(name: str) -> list[int]:
    return [int(pid) for path in Path("/sys/fs/cgroup", name).rglob("cgroup.procs") for pid in path.read_text().split()]


def test_reap_clears_what_a_killed_server_left(node: Node, busybox: str) -> None:
    node.env["SQUASHMOUNT_LINGER"] = "60"
    node.podman("run", "--rm", busybox).ok()
    (server,) = ps(node)
    os.kill(int(str(server["supervisor"])), signal.SIGKILL)
    wait_for(lambda: not node.servers(), "the worker dies with its supervisor")
    assert "removed" in node.squashmount("reap").ok()
    assert [path.name for path in node.state().iterdir()] == ["log"]


def test_two_users_have_a_server_each(
    make_node: Callable[..., Node], alice: User, bob: User, store: Path, busybox: str
) -> None:
    nodes = [make_node(user, stores=(store,)) for user in (alice, bob)]
    for node in nodes:
        assert node.podman("run", "--rm", busybox).ok() == "hello from /work"
        assert node.log().count("serving ") == 1


def test_a_damaged_squash_is_refused_with_cause_and_fix(
    make_node: Callable[..., Node], alice: User, store: Path, busybox: str, lab: Path
) -> None:
    broken = lab / "broken-store"
    run("cp", "-a", str(store), str(broken)).ok()
    for squash in broken.glob("squashmount/capsules/*/image.squashfs"):
        squash.chmod(0o644)
        squash.write_bytes(b"not a squash file" * 1000)
    node = make_node(alice, stores=(broken,))
    done = node.podman("run", "--rm", busybox)
    assert done.code != 0
    assert "image.squashfs" in done.err
    assert "hint:" in done.err
    assert not node.servers()


@pytest.fixture
def private_store(store: Path, busybox: str, debian: str, lab: Path, alice: User) -> Path:
    """A copy of the store whose squash files a test may damage."""
    assert busybox
    assert debian
    copy = Path(tempfile.mkdtemp(dir=lab))
    run("cp", "-a", f"{store}/.", str(copy)).ok()
    run("chown", f"{alice.uid}:{alice.gid}", str(copy)).ok()
    return copy


@pytest.mark.parametrize("damage", ["rm {0}", "cp {0} {0}.new && truncate -s 0 {0}.new && mv {0}.new {0}"])
def test_a_file_replaced_or_removed_stays_what_it_was_for_running_containers(
    make_node: Callable[..., Node], alice: User, private_store: Path, busybox: str, damage: str
) -> None:
    node = make_node(alice, stores=(private_store,))
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    for squash in private_store.glob("squashmount/capsules/*/image.squashfs"):
        run("sh", "-c", damage.format(squash)).ok()
    # nobody has read these before
    assert node.podman("exec", "kept", "cat", "/work/mine").ok() == "33"
    assert "www" in node.podman("exec", "kept", "cat", "/etc/passwd").ok()
    done = node.podman("run", "--rm", busybox)
    assert done.code != 0
    assert "hint:" in done.err
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_a_file_truncated_under_the_server_is_an_error_of_that_read(
    make_node: Callable[..., Node], alice: User, private_store: Path, debian: str
) -> None:
    node = make_node(alice, stores=(private_store,))
    node.podman("run", "-d", "--name", "kept", debian, "sleep", "600").ok()
    # the programs themselves must be in the page cache: a missing page of theirs would be SIGBUS
    node.podman("exec", "kept", "cat", "/etc/passwd").ok()
    servers = node.servers()
    for squash in private_store.glob("squashmount/capsules/*/image.squashfs"):
        run("truncate", "-s", "4096", str(squash)).ok()
    # a file nobody has read before; what is in the page cache goes on being served
    done = node.run("timeout", "20", "podman", "exec", "kept", "cat", "/odd/noise")
    assert done.code == 1
    assert node.podman("exec", "kept", "cat", "/etc/passwd").ok()
    assert "/output error" in done.err.lower()
    assert set(node.servers()) <= set(servers)  # what read ahead may have ended
    assert len(node.servers()) >= 2
    assert "damaged" in node.log() or "error" in node.log()
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_the_log_is_bounded(node: Node, busybox: str) -> None:
    node.podman("run", "--rm", busybox).ok()
    log = node.state() / "log"
    log.write_bytes(b"x" * (1 << 20))
    node.podman("run", "--rm", busybox).ok()
    node.podman("run", "--rm", busybox).ok()
    assert (node.state() / "log.1").stat().st_size >= 1 << 20
    assert not log.exists() or log.stat().st_size < 10_000


def test_rootful_podman(make_node: Callable[..., Node], root: User, store: Path, busybox: str, debian: str) -> None:
    node = make_node(root, stores=(store,))
    # crun wants to raise RLIMIT_MEMLOCK for a cgroup of root's, which not every machine the tests run on allows
    options = ("run", "--rm", "--cgroups=disabled", "--pid=private")
    assert node.podman(*options, busybox).ok() == "hello from /work"
    owners = ("stat", "-c", "%u:%g", "/odd/owned", "/odd/high")
    assert node.podman(*options, debian, *owners).ok().split() == ["1000:2000", "65533:65533"]
    assert "kernel overlay (fastest)" in node.log()
    wait_for(lambda: not node.servers(), "the server ends")
