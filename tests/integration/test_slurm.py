"""Squashed images under a real Slurm of two nodes: plain steps, MPI by PMI2 and PMIx, and nothing left behind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import User, wait_for
from mpi_programs import NEEDS_MPICH, build_open_mpi_program, build_program
from slurm_lab import NEEDS_SLURM, Cluster
from squashmount.oci_hooks.hostlist import expanded

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman, NEEDS_SLURM, NEEDS_MPICH]

TASKS = ("-N2", "-n4", "--ntasks-per-node=2", "--label")
# what `podman --module mpi` says where Podman has modules (4.7 and newer; here it is 4.3)
SHARED = ("--network=host", "--ipc=host", "--pid=host")
MPI = ("--annotation", "squashmount.mpi=auto")


@pytest.fixture(scope="module")
def cluster(lab: Path, product: Path, store: Path) -> Iterator[Cluster]:
    made = Cluster(lab, product, store)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def nothing_stays(cluster: Cluster, alice: User) -> Iterator[None]:
    yield
    for name in ("n1", "n2"):
        wait_for(lambda name=name: not cluster.left(name, alice), f"nothing is left on {name}", seconds=15)


@pytest.fixture(scope="module")
def image(mpi_image: Callable[[str], str]) -> str:
    return mpi_image("trixie")


@pytest.fixture(scope="module")
def programs(lab: Path) -> Path:
    """The directory of both programs, mounted on /mpi."""
    path = lab / "slurm-programs"
    path.mkdir()
    build_program(path)
    build_open_mpi_program(path)
    return path


def ranks(mpi: str) -> list[str]:
    """What four ranks say that found each other, two on each node."""
    nodes = ("n1", "n1", "n2", "n2")
    return [f"0: 4 ranks, token 400: {mpi}", *(f"{rank}: rank {rank} on {nodes[rank]}: {mpi}" for rank in range(4))]


def test_the_steps_of_a_job_on_two_nodes(cluster: Cluster, alice: User, image: str) -> None:
    # the end of the first kills Podman's pause process: the second must not find its traces
    step = f"srun --label podman run --rm --network=host {image} cat /etc/hostname"
    job = cluster.on("ctl", "salloc", "--quiet", *TASKS[:3], "sh", "-c", f"{step}; {step}", user=alice)
    assert sorted(job.ok().splitlines()) == sorted(["0: n1", "1: n1", "2: n2", "3: n2"] * 2)


def test_the_tasks_of_a_step_share_a_server_until_scancel(cluster: Cluster, alice: User, image: str) -> None:
    step = f"srun podman run --rm --network=host {image} sleep 60"
    job = cluster.on("ctl", "sbatch", "--parsable", *TASKS[:3], "--output=/dev/null", f"--wrap={step}", user=alice).ok()

    def running(name: str, program: str) -> int:
        return sum(line.startswith(program) for line in cluster.processes(name))

    for name in ("n1", "n2"):
        wait_for(lambda name=name: running(name, "sleep 60") == 2, f"two containers run on {name}")
        assert running(name, cluster.program("python3")) == 2, "one server: a supervisor and its worker"
    cluster.on("ctl", "scancel", job, user=alice).ok()


def test_the_hosts_mpich_by_pmi2(cluster: Cluster, alice: User, image: str, programs: Path) -> None:
    podman = ("podman", "--runtime", cluster.program("squashmount-runtime"), "run", "--rm", "-v", f"{programs}:/mpi:ro")
    own = cluster.srun(alice, "--mpi=pmi2", "-n1", *podman, image, "/mpi/ring")
    assert own.ok() == "1 ranks, token 0: MPICH 4.2.1"
    look = ("sh", "-c", "ls /proc/$$/fd; echo $PMI_FD")
    opened = cluster.srun(alice, "--mpi=pmi2", "-n1", *podman, *SHARED, *MPI, image, *look).ok().split()
    assert sorted(opened[:-1]) == sorted(["0", "1", "2", opened[-1]])
    command = (*podman, *SHARED, *MPI, image, "/mpi/ring", "more")
    swapped = cluster.srun(alice, "--mpi=pmi2", *TASKS, *command, MPIR_CVAR_ENABLE_HEAVY_YIELD="1")
    said = swapped.ok().splitlines()
    assert set(said) >= set(ranks("MPICH 4.0.2"))
    assert len([line for line in said if line.startswith("0: latency to rank ")]) == 3


@pytest.mark.parametrize("user", [(), ("--userns=keep-id",)], ids=["root", "keep-id"])
def test_open_mpi_of_the_image_by_pmix(
    cluster: Cluster, alice: User, image: str, programs: Path, user: tuple[str, ...]
) -> None:
    podman = ("podman", "run", "--rm", "-v", f"{programs}:/mpi:ro", *user, *SHARED, *MPI)
    session = "/tmp/spmix_appdir_${SLURM_JOB_UID}_$SLURM_JOB_ID.$SLURM_STEP_ID"
    script = f'grep -q " {session} " /proc/self/mountinfo && exec /mpi/ring-open-mpi more'
    command = (*podman, image, "sh", "-c", script)
    done = cluster.srun(alice, "--mpi=pmix", *TASKS, *command, OMPI_MCA_mpi_yield_when_idle="1")
    said = done.ok().splitlines()
    latencies = [line for line in said if line.startswith("0: latency to rank ")]
    assert len(latencies) == 3
    assert sorted(set(said) - set(latencies)) == sorted(ranks("Open MPI 5.0.7")), "no warning of a foreign UCX either"


@pytest.mark.parametrize(
    "text",
    ["n1", "login.x_y-z", "n[1-3]", "n[1-3,07],m", "n[008-010,12],login", "r[1-2]c[3-4]", "n[098-101]"],
)
def test_lists_of_nodes_are_read_as_slurm_reads_them(cluster: Cluster, text: str) -> None:
    assert cluster.on("ctl", "scontrol", "show", "hostnames", text).ok().split() == expanded(text)


def test_tasks_that_could_not_find_each_other(cluster: Cluster, alice: User, image: str, programs: Path) -> None:
    podman = ("podman", "run", "--rm", "-v", f"{programs}:/mpi:ro", *MPI)
    alone = cluster.srun(alice, "--mpi=none", *TASKS, *podman, *SHARED, image, "/mpi/ring")
    assert alone.ok().count("1 ranks, token 0: MPICH 4.0.2") == 4
    assert alone.err.count("mpich: srun started 4 tasks with no PMI: each will be an MPI program of its own.") == 1
    for option, cause in (("--network=host", "tasks of one node share memory"), ("--ipc=host", "cannot be reached")):
        apart = cluster.srun(alice, "--mpi=pmi2", *TASKS, *podman, option, image, "/mpi/ring")
        assert apart.code != 0
        assert apart.err.count(cause) == 4
        assert apart.err.count("podman --module mpi run") == 4
        assert "ranks" not in apart.out


def test_slurms_commands_inside(cluster: Cluster, alice: User, image: str) -> None:
    podman = (
        "podman",
        "run",
        "--rm",
        "--network=host",
        "--userns=keep-id",
        "--annotation",
        "squashmount.slurm-client=on",
    )
    queue = ("squeue", "--noheader", "--format=%u %N %T")
    assert cluster.srun(alice, "-N1", "--nodelist=n2", *podman, image, *queue).ok() == "alice n2 RUNNING"


# each goes to both, and ends when both have come
VISIT = """
for node in n1 n2; do echo "$node: $(ssh $node 'echo "$(cat /etc/hostname), $GREETING"')"; done
for node in n1 n2; do ssh $node "touch /tmp/came-from-$(cat /etc/hostname)"; done
until [ -e /tmp/came-from-n1 ] && [ -e /tmp/came-from-n2 ]; do sleep 0.1; done
"""


def test_ssh_between_the_containers_of_a_step(cluster: Cluster, alice: User, image: str) -> None:
    podman = ("podman", "run", "--rm", "--network=host", "--annotation=squashmount.ssh=on", "--env=GREETING=it's $HOME")
    done = cluster.srun(alice, "-N2", "-n2", "--label", *podman, image, "sh", "-c", VISIT)
    said = [f"{rank}: {node}: {node}, it's $HOME" for rank in (0, 1) for node in ("n1", "n2")]
    assert sorted(done.ok().splitlines()) == said


SYNC = ("podman", "run", "--rm", "--network=host", "--annotation", "squashmount.slurm-sync=on")


def test_the_containers_of_a_step_wait_for_the_last(cluster: Cluster, alice: User, image: str) -> None:
    script = f'sleep "$SLURM_PROCID"; cat /proc/uptime; {" ".join(SYNC)} {image} cat /proc/uptime'
    lines = [line.split() for line in cluster.srun(alice, *TASKS, "sh", "-c", script).ok().splitlines()]
    came, began = [], []
    for rank in ("0:", "1:", "2:", "3:"):
        before, inside = [float(line[1]) for line in lines if line[0] == rank]
        came.append(before)
        began.append(inside)
    assert min(began) >= max(came)
    assert list((alice.home / ".local/state/squashmount/slurm-sync").iterdir()) == []


def test_a_step_that_lacks_a_container_says_which(cluster: Cluster, alice: User, image: str) -> None:
    podman = " ".join((*SYNC, "--annotation", "squashmount.slurm-sync.timeout=8"))
    script = f'[ "$SLURM_PROCID" = 3 ] || exec {podman} {image} echo ran'
    done = cluster.srun(alice, *TASKS, "sh", "-c", script)
    assert done.code != 0
    assert "ran" not in done.out
    assert done.err.count("1 of 4 containers did not come to the barrier in 8 s: rank 3, of node n2.") == 3
