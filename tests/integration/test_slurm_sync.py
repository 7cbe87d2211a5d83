"""slurm-sync and timestamp in real containers: a step of two nodes, who does not come, and the times in the log."""

import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import Node, User, run, wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}"))
    for name in ("crun", "runc")
]
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


class Cluster:
    """Two nodes of a user, who has a home on both; srun is played by environment variables."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        user = nodes[0].user
        self.shared = user.home / ".local/state/squashmount/slurm-sync"
        self.hooks = user.home / "hooks.d"
        run(str(nodes[0].product / "bin/squashmount-hooks"), "install", "--dir", str(self.hooks)).ok()

    def command(self, rank: int, *argv: str, sync: str = "on", **more: str) -> list[str]:
        """Return what task `rank` of the step runs, to be started on its node."""
        own = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank // 2), "SLURMD_NODENAME": f"node0{rank // 2 + 1}"}
        words = [f"{key}={value}" for key, value in {**JOB, **own, **more}.items()]
        podman = ("podman", "--hooks-dir", str(self.hooks), "--runtime", argv[0])
        return ["env", *words, *podman, "run", "--annotation", f"squashmount.slurm-sync={sync}", *argv[1:]]

    def log(self, node: Node, container: str) -> str:
        return node.run(str(node.product / "bin/squashmount-hooks"), "log", container).ok()

    def arrived(self) -> int:
        return len(list(self.shared.glob("4711.0.*/0.0/*")))


@pytest.fixture
def cluster(make_node: Callable[..., Node], alice: User, store: Path, busybox: str) -> Cluster:
    assert busybox
    return Cluster([make_node(alice, stores=(store,)) for _ in range(2)])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_container_of_a_step_begins_before_the_last_has_come(cluster: Cluster, busybox: str, runtime: str) -> None:
    users = ("--userns=host", "--userns=keep-id", "--userns=host", "--userns=keep-id")
    commands = [
        cluster.command(rank, runtime, "--name", f"task{rank}", users[rank], busybox, "cat", "/proc/uptime")
        for rank in range(4)
    ]
    with ExitStack() as stack:
        children = [stack.enter_context(cluster.nodes[rank // 2].started(*commands[rank])) for rank in (0, 1, 3)]
        wait_for(lambda: cluster.arrived() == 3, "three containers are at the barrier", 60)
        began = float(Path("/proc/uptime").read_text().split()[0])
        assert all(child.poll() is None for child in children)
        children.append(stack.enter_context(cluster.nodes[1].started(*commands[2])))
        for child in children:
            out, err = child.communicate(timeout=60)
            assert (child.returncode, err) == (0, b"")
            assert float(out.split()[0]) >= began
    for rank in range(4):
        said = cluster.log(cluster.nodes[rank // 2], f"task{rank}")
        assert f"all 4 containers of the step are there; task {rank} waited" in said
    assert list(cluster.shared.glob("*4711.*")) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_who_does_not_come_is_named_and_the_container_does_not_run(
    cluster: Cluster, busybox: str, runtime: str
) -> None:
    options = ("--annotation", "squashmount.slurm-sync.timeout=2", "--name", "alone", busybox, "echo", "ran")
    done = cluster.nodes[0].run(*cluster.command(0, runtime, *options, sync="node"))
    assert done.code != 0
    assert "ran" not in done.out
    sentence = "1 of 2 containers did not come to the barrier in 2 s: rank 1, of node node02."
    assert done.err.count(sentence) == 1
    assert f"refused: {sentence}" in cluster.log(cluster.nodes[0], "alone")
    # the requeued job has the same number, and both nodes; the second container of a node does not count
    commands = [cluster.command(rank, runtime, busybox, sync="node", SLURM_RESTART_COUNT="1") for rank in (0, 2)]
    with cluster.nodes[0].started(*commands[0]) as first, cluster.nodes[1].started(*commands[1]) as second:
        for child in (first, second):
            out, err = child.communicate(timeout=60)
            assert (child.returncode, out, err) == (0, b"hello from /work\n", b"")
    # outside of a step there is nobody to wait for
    plain = ("podman", "--hooks-dir", str(cluster.hooks), "run", "--rm", "--annotation", "squashmount.slurm-sync=on")
    assert cluster.nodes[0].run(*plain, busybox).ok() == "hello from /work"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("userns", ["host", "keep-id"])
def test_the_times_of_a_start_are_in_the_log(cluster: Cluster, busybox: str, runtime: str, userns: str) -> None:
    node = cluster.nodes[0]
    asked = ("--annotation", "squashmount.timestamp=on", "--annotation", "squashmount.timestamp.message=run 1")
    podman = ("--hooks-dir", str(cluster.hooks), "--runtime", runtime)
    node.podman(*podman, "run", "--name", "timed", f"--userns={userns}", *asked, busybox, "true").ok()
    said = [line for line in cluster.log(node, "timed").splitlines() if "timestamp: " in line and "(run 1)" in line]
    points = ["precreate", "createRuntime begins", "createRuntime ends", "createContainer ends", "poststart"]
    assert len(said) == len(points)
    times = []
    for line, point in zip(said, points, strict=True):
        assert f"timestamp: {point}" in line
        found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}) ", line)
        assert found
        times.append(found[1])
    assert times == sorted(set(times))
