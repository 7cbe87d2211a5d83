"""What only Podman's command line can say about MPI: `podman --module mpi run` says it, and older Podman by options."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Done, Node

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

# a task of srun --mpi=pmi2: its socket has a number with a gap below. The container's word goes to the other end.
TASK = """
import os, socket, subprocess, sys
server, task = socket.socketpair()
os.dup2(task.fileno(), 11)
done = subprocess.run(sys.argv[1:], pass_fds=[11], timeout=60)
task.close()
os.close(11)
print(server.recv(100).decode())
sys.exit(done.returncode)
"""
JOB = {"PMI_FD": "11", "PMI_RANK": "0", "PMI_SIZE": "1"}
SPEAK = "echo rank $PMI_RANK speaks on $PMI_FD >&11; for ns in ipc pid net; do readlink /proc/self/ns/$ns; done"
SPOKEN = "rank 0 speaks on 11"
NAMESPACES = [os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "pid", "net")]


@pytest.fixture
def node(compute: Node, busybox: str) -> Iterator[Node]:
    """A node of a user who has installed the hook for himself."""
    assert busybox
    compute.env |= JOB
    compute.run(hooks(compute), "install").ok()
    yield compute
    compute.run(hooks(compute), "remove").ok()
    assert not list((compute.user.home / ".config/containers/containers.conf.modules").iterdir())


def hooks(node: Node) -> str:
    return str(node.product / "bin/squashmount-hooks")


def has_modules(node: Node) -> bool:
    return "--module" in node.podman("--help").ok()


def options(node: Node, *modules: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options before and behind `run` that switch modules on; Podman before 4.8 is told all by options."""
    if has_modules(node):
        return tuple(word for name in modules for word in ("--module", name)), ()
    directory = str(node.user.home / ".config/containers/oci/hooks.d")
    runtime = str(node.product / "bin/squashmount-runtime")
    words = {"mpi": "squashmount.mpi=auto", "scratch": "squashmount.scratch=on"}
    said = tuple(word for name in modules for word in ("--annotation", words[name]))
    return ("--hooks-dir", directory, "--runtime", runtime), ("--network=host", "--ipc=host", "--pid=host", *said)


def task(node: Node, *argv: str) -> Done:
    return node.run("python3", "-c", TASK, "podman", *argv)


def test_a_rank_has_its_socket_and_the_hosts_namespaces(node: Node, busybox: str) -> None:
    before, behind = options(node, "mpi")
    done = task(node, *before, "run", "--rm", *behind, busybox, "sh", "-c", SPEAK)
    assert done.ok().split("\n") == [*NAMESPACES, SPOKEN]


def test_the_runtimes_reason_is_podmans(node: Node, busybox: str) -> None:
    before, behind = options(node, "mpi")
    done = node.podman(*before, "run", "--rm", *behind, busybox, "/nowhere")
    assert "/nowhere" in done.err
    assert "No such file or directory" in done.err
    assert done.code == 127


def test_modules_add_to_each_other(node: Node, busybox: str) -> None:
    scratch = node.user.home / "scratch"
    node.run("mkdir", str(scratch)).ok()
    node.run("sh", "-c", f"echo mine > {scratch}/file").ok()
    node.env["SCRATCH"] = str(scratch)
    before, behind = options(node, "mpi", "scratch")
    done = task(node, *before, "run", "--rm", *behind, busybox, "sh", "-c", f"cat {scratch}/file; {SPEAK}")
    shutil.rmtree(scratch)
    assert done.ok().split("\n") == ["mine", *NAMESPACES, SPOKEN]


def test_a_container_of_a_module_is_handled_without_it(node: Node, busybox: str) -> None:
    before, behind = options(node, "mpi")
    work = ("sh", "-c", "echo >&11; while [ ! -e /end ]; do sleep 0.1; done")
    task(node, *before, "run", "-d", "--name", "one", *behind, busybox, *work).ok()
    # `podman stop` of 4.3 cannot end a container in the host's process ids
    node.podman("exec", "one", "touch", "/end").ok()
    assert node.podman("wait", "one").ok() == "0"
    node.podman("rm", "one").ok()


@pytest.fixture
def without_crun(lab: Path) -> Iterator[str]:
    """A PATH that has runc and no crun."""
    programs = lab / "without-crun"
    programs.mkdir()
    for name in os.listdir("/usr/bin"):
        if name != "crun":
            (programs / name).symlink_to(f"/usr/bin/{name}")
    (programs / "runc").unlink(missing_ok=True)
    (programs / "runc").symlink_to(str(shutil.which("runc")))
    yield str(programs)
    shutil.rmtree(programs)


OPEN = "ls -l /proc/$$/fd; echo rank $PMI_RANK >&11"


def opened(done: Done) -> tuple[dict[int, str], str]:
    """Return the container's descriptors behind standard error, and what was said to the socket."""
    *lines, said = done.ok().split("\n")
    links = dict(line.split()[-3::2] for line in lines if " -> " in line)
    return {int(number): link for number, link in links.items() if int(number) > 2}, said


def test_a_rank_has_its_socket_and_nothing_of_conmons(node: Node, busybox: str) -> None:
    before, behind = options(node, "mpi")
    left, said = opened(task(node, *before, "run", "--rm", *behind, busybox, "sh", "-c", OPEN))
    assert said == "rank 0"
    assert list(left) == [11]
    assert left[11].startswith("socket:")


def test_runc_is_given_the_socket_too(node: Node, busybox: str, without_crun: str) -> None:
    before, behind = options(node, "mpi")
    path = ("env", f"PATH={without_crun}", "python3", "-c", TASK)
    left, said = opened(node.run(*path, "podman", *before, "run", "--rm", *behind, busybox, "sh", "-c", OPEN))
    assert said == "rank 0"
    # which refuses a gap
    assert [link for number, link in left.items() if number != 11] == ["/dev/null"] * 8
    assert left[11].startswith("socket:")


FORGED = """
FROM {base}
ENV PMI_FD=11 PMI_RANK=0
"""


def test_an_image_cannot_ask_for_a_descriptor(node: Node, login: Node, busybox: str, lab: Path) -> None:
    context = lab / "forged"
    context.mkdir()
    (context / "Containerfile").write_text(FORGED.format(base=busybox))
    forged = ("--format=oci", "--annotation=squashmount.pmi-fd=11 socket:[1]")
    build = ("build", "--isolation=chroot", "--network=host", *forged, "-t", "localhost/forged:1", str(context))
    login.podman(*build).ok()
    login.migrate("mig", "localhost/forged:1", str(node.stores[0])).ok()
    shutil.rmtree(context)
    hook = ("--hooks-dir", str(node.user.home / ".config/containers/oci/hooks.d"))
    runtime = ("--runtime", str(node.product / "bin/squashmount-runtime"))
    look = ("sh", "-c", "ls /proc/$$/fd | xargs; echo mine >&11")
    for way in (runtime, (*hook, *runtime)):
        done = task(node, *way, "run", "--rm", "localhost/forged:1", *look)
        assert "Bad file descriptor" in done.err
        assert done.out.split() == ["0", "1", "2"]
    login.podman("rmi", "localhost/forged:1").ok()


def test_the_users_own_word_counts(node: Node, busybox: str) -> None:
    runtime = ("--runtime", str(node.product / "bin/squashmount-runtime"))
    filled = 'for fd in 3 4 5 6 7 8 9 10; do eval "exec $fd</dev/null"; done; exec "$@"'
    speak = ("sh", "-c", "echo mine >&11")
    argv = ("podman", *runtime, "run", "--rm", "--preserve-fds=9", busybox, *speak)
    assert node.run("python3", "-c", TASK, "bash", "-c", filled, "bash", *argv).ok() == "mine"


def test_what_is_installed_is_listed_and_what_is_anothers_stays(node: Node) -> None:
    directory = node.user.home / ".config/containers/containers.conf.modules"
    names = sorted(path.name for path in directory.iterdir())
    assert {"mpi", "gpu", "mpich", "openmpi-pmix", "ucx"} <= set(names)
    assert f"podman --module: {' '.join(names)} ({directory})" in node.run(hooks(node), "list").ok()
    (directory / "ucx").write_text("[containers]\n")
    assert f"left as it is: {directory}/ucx, which is not ours" in node.run(hooks(node), "install").ok()
    node.run(hooks(node), "remove").ok()
    assert [path.name for path in directory.iterdir()] == ["ucx"]
    (directory / "ucx").unlink()
