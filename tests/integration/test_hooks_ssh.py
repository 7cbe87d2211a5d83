"""The module ssh: two machines (network namespaces on a cable), containers of one job on both, real sshd and ssh."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab import Done, Node, User, all_processes, run, wait_for

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.needs_podman,
    pytest.mark.skipif(not shutil.which("sshd", path="/usr/sbin"), reason="needs sshd"),
]

MACHINES = {"n1": "10.79.0.1", "n2": "10.79.0.2"}
JOB = "4711"
PORT = 20000 + 4711 % 187 * 64


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    """Two network namespaces with names, joined by a veth pair; the machine's own network is not touched."""
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    hosts.write_text(before + "".join(f"{address} {name}\n" for name, address in MACHINES.items()))
    for name in MACHINES:
        run("ip", "netns", "add", f"ssh-{name}").ok()
    run(
        "ip", "link", "add", "name", "v1", "netns", "ssh-n1", "type", "veth", "peer", "name", "v2", "netns", "ssh-n2"
    ).ok()
    for device, (name, address) in zip(("v1", "v2"), MACHINES.items(), strict=True):
        inside = ("ip", "-n", f"ssh-{name}")
        run(*inside, "address", "add", f"{address}/24", "dev", device).ok()
        run(*inside, "link", "set", device, "up").ok()
        run(*inside, "link", "set", "lo", "up").ok()
    yield
    for name in MACHINES:
        run("ip", "netns", "delete", f"ssh-{name}").ok()
    hosts.write_text(before)


class Machine:
    """A node in a network namespace, with the hook installed and a job's variables."""

    def __init__(self, name: str, node: Node, hooks: Path, job: str = JOB) -> None:
        self.name, self.node, self.hooks = name, node, hooks
        node.env |= {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n[1-2]"}

    def podman(self, *argv: str, **options: str) -> Done:
        node = self.node
        network = ["nsenter", f"--net=/run/netns/ssh-{self.name}", *node.user.prefix()]
        environ = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": str(node.user.home), "USER": node.user.name}
        words = [f"{key}={value}" for key, value in (environ | node.environment() | options).items()]
        return run(*network, "env", "-i", *words, "podman", "--hooks-dir", str(self.hooks), *argv, cwd="/")

    def start(self, image: str, *options: str, name: str = "c", **environ: str) -> None:
        self.podman(
            "run", "-d", "--name", name, "--annotation=squashmount.ssh=on", *options, image, *WAIT, **environ
        ).ok()

    def ssh(self, *argv: str, name: str = "c") -> Done:
        return self.podman("exec", name, "/run/squashmount/ssh/bin/ssh", *argv)


WAIT = ("sleep", "1000")
HOSTILE = {
    "QUOTES": """it's "so" `called` $HOME $(reboot) \\ ;&|""",
    "LINES": "one\ntwo\n\n'three",
    "BASH_FUNC_f%%": "() { echo f; }",
    "odd.name-1": "x",
    "SPACES": "  a  b  ",
    "EMPTY": "",
}


@pytest.fixture(scope="module")
def hooks_dir(lab: Path, product: Path) -> Path:
    top = lab / "ssh-hooks"
    top.mkdir(mode=0o755)
    policy = top / "hooks.toml"
    policy.write_text("modules = []\n")
    run(str(product / "bin/squashmount-hooks"), "install", "--dir", str(top / "d"), "--policy", str(policy)).ok()
    return top / "d"


@pytest.fixture
def machines(
    cable: None, hooks_dir: Path, make_node: Callable[..., Node], alice: User, store: Path
) -> dict[str, Machine]:
    assert cable is None
    return {name: Machine(name, make_node(alice, stores=(store,)), hooks_dir) for name in MACHINES}


@pytest.mark.parametrize(
    ("runtime", "userns"),
    [("crun", "keep-id"), pytest.param("runc", "", marks=pytest.mark.skipif(not shutil.which("runc"), reason="runc"))],
)
def test_both_ways_with_the_environment(machines: dict[str, Machine], busybox: str, runtime: str, userns: str) -> None:
    options = [f"--runtime={runtime}", *([f"--userns={userns}"] if userns else [])]
    options += [f"--env={name}={value}" for name, value in HOSTILE.items()]
    for machine in machines.values():
        machine.start(busybox, *options, f"--env=HERE={machine.name}")
    for here, there in (("n1", "n2"), ("n2", "n1")):
        done = machines[here].ssh(there, "echo $HERE $(id -u); cat /proc/$$/environ; true")
        first, _, entries = done.ok().partition("\n")
        assert first == f"{there} {machines[here].node.user.uid if userns else 0}"
        environ = dict(entry.partition("=")[::2] for entry in entries.split("\0"))
        assert environ.items() >= HOSTILE.items()
        assert environ["SQUASHMOUNT_SSH_PORT"] == str(PORT)
        assert environ["SSH_CONNECTION"].startswith(MACHINES[here])
    # the container's own command has what it would have without us, and nothing of the shells between
    command = machines["n1"].podman("exec", "c", "cat", "/proc/1/environ").ok()
    environ = dict(entry.partition("=")[::2] for entry in command.split("\0") if entry)
    assert environ.items() >= HOSTILE.items()
    assert not {"SHLVL", "PWD", "OPENSSL_CONF", "_"} & environ.keys()
    # a terminal, a jump, a file, an exit status
    assert "/dev/pts/" in machines["n1"].ssh("-tt", "n2", "tty").ok()
    assert machines["n1"].ssh("-J", "n2", "n1", "echo $HERE").ok() == "n1"
    copied = machines["n1"].podman("exec", "c", "/run/squashmount/ssh/bin/scp", "-q", "/bin/busybox", "n2:/tmp/b")
    copied.ok()
    assert machines["n1"].ssh("n2", "cmp /tmp/b /bin/busybox && exit 7").code == 7


def test_only_the_job_gets_in_and_only_its_hosts_are_believed(
    machines: dict[str, Machine], hooks_dir: Path, make_node: Callable[..., Node], bob: User, store: Path, busybox: str
) -> None:
    machines["n1"].start(busybox)
    # bob's job has the port of alice's, on a node where she has no container
    stranger = Machine("n2", make_node(bob, stores=(store,)), hooks_dir, job=str(int(JOB) + 187))
    stranger.start(busybox)
    done = machines["n1"].ssh("n2", "true")
    assert done.code == 255
    assert "Host key verification failed" in done.err
    blind = ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")
    done = machines["n1"].ssh(*blind, "n2", "true")
    assert done.code == 255
    assert "Permission denied (publickey)" in done.err
    assert stranger.ssh("localhost", "echo his own").ok() == "his own"
    # the keys are the user's alone
    places = [machine.node.user.home / ".local/state/squashmount/ssh" for machine in (machines["n1"], stranger)]
    for place, job in zip(places, (JOB, str(int(JOB) + 187)), strict=True):
        assert (place / job).stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in (place / job).iterdir()} == {0o600}
        others = {path.name for path in place.iterdir()} - {job}
        assert all(name.isdecimal() for name in others), "only directories of other jobs, nothing half made"


def test_several_containers_on_a_node_and_nothing_stays(machines: dict[str, Machine], busybox: str) -> None:
    here = machines["n1"]
    here.start(busybox, "--env=WHO=first", SLURM_LOCALID="0")
    here.start(busybox, "--env=WHO=second", name="d", SLURM_LOCALID="1")
    assert here.ssh("n1", "echo $WHO").ok() == "first"
    assert here.ssh("-p", str(PORT + 1), "n1", "echo $WHO").ok() == "second"
    again = ("--annotation=squashmount.ssh=on", "--annotation=squashmount.ssh.index=1", busybox, "echo", "ran")
    done = here.podman("run", "--name", "e", *again)
    assert done.code != 0
    assert "ran" not in done.out
    assert f"Port {PORT + 1}, where the sshd of this container would listen, is in use" in done.err
    log = here.node.run(str(here.node.product / "bin/squashmount-hooks"), "log", "e").ok()
    assert f"refused: Port {PORT + 1}, where the sshd of this container would listen, is in use" in log
    done = here.podman("run", "--annotation=squashmount.ssh=on", "--cap-drop=all", busybox, "true", SLURM_LOCALID="2")
    assert "sshd cannot run as root in this container" in done.err
    # found by sshd itself where the port cannot be looked at before
    here.start(busybox, "--network=none", name="f")
    options = ("--rm", "--annotation=squashmount.ssh=on", "--network=container:f")
    done = here.podman("run", *options, busybox, "echo", "ran")
    assert (done.code, done.out) == (1, ""), done.err
    assert f"sshd does not listen on port {PORT}:\n  " in done.err
    assert "Address already in use" in done.err
    assert ours() != []
    here.podman("rm", "--all", "--force", "--time=0").ok()
    wait_for(lambda: not ours(), "every sshd ends")
    assert os.listdir(here.node.state() / "ssh") == []


def test_nothing_stays_where_the_container_has_the_machine_s_process_ids(
    machines: dict[str, Machine], busybox: str
) -> None:
    here = machines["n1"]
    here.start(busybox, "--pid=host")
    here.podman("exec", "-d", "c", "/run/squashmount/ssh/bin/ssh", "n1", "sleep 1234").ok()
    wait_for(lambda: _running("sleep 1234 "), "the session runs")
    assert ours() != []
    os.kill(int(here.podman("inspect", "--format={{.State.Pid}}", "c").ok()), signal.SIGKILL)
    wait_for(lambda: not ours() and not _running("sleep 1234 "), "sshd and its sessions end")


def _running(command: str) -> bool:
    return any(line.startswith(command) for line in command_lines())


def ours() -> list[str]:
    """Return the command lines of all processes that run the host's programs in a container."""
    return [line for line in command_lines() if line.startswith("/run/squashmount/ssh/lib")]


def command_lines() -> list[str]:
    lines = []
    for pid in all_processes():
        with suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return lines


def test_root_in_a_container_of_roots(
    cable: None, hooks_dir: Path, make_node: Callable[..., Node], root: User, store: Path, busybox: str
) -> None:
    assert cable is None
    machine = Machine("n1", make_node(root, stores=(store,)), hooks_dir)
    # as in test_hooks.py: not every machine the tests run on lets crun make root's cgroup
    machine.start(busybox, "--cgroups=disabled", "--pid=private")
    assert machine.podman("logs", "c").ok() == ""
    assert machine.ssh("n1", "id -un").ok() == "root"
