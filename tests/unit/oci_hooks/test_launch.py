"""Tasks that could not find each other: said, or stopped, before they start."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elf_files import library
from squashmount.oci_hooks import apply, launch, module, policy
from squashmount.oci_hooks.plan import Plan
from squashmount.oci_hooks.planning import Image, Site, make_plan
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

from squashmount.runtime import outside_uid

STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
PMI2 = {"PMI_SIZE": "4", "PMI_JOBID": "7.0"}
PMIX = {"PMIX_VERSION": "4.2.2"}
MODULES = {
    path.stem: module.load(str(path)) for path in Path(policy.SHIPPED_DIR).glob("*.toml") if "openmpi" in path.stem
}


@pytest.mark.parametrize(
    ("environ", "speaks", "says"),
    [
        (STEP | PMI2, {"pmi"}, ""),
        (STEP | PMIX, {"pmi", "pmix"}, ""),
        (STEP | PMIX, {"pmix"}, ""),
        (PMI2, {"pmi"}, ""),
        ({}, {"pmi"}, ""),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, {"pmi"}, ""),
        ({"SLURM_STEP_NUM_TASKS": "many", "SLURM_STEP_NUM_NODES": "2"}, {"pmi"}, ""),
        (STEP, {"pmi"}, "4 tasks with no PMI: each will be an MPI program of its own. Type srun --mpi=pmi2."),
        (STEP | PMIX, {"pmi"}, "4 tasks with PMIx, which this MPICH does not speak: "),
        (STEP | PMI2, {"pmix"}, "4 tasks with PMI2, which Open MPI speaks only where it was built for it: "),
        (STEP, {"pmix"}, "Type srun --mpi=pmix."),
    ],
)
def test_tasks_without_a_pmi_they_speak(environ: dict[str, str], speaks: set[str], says: str) -> None:
    found = launch.no_pmi(environ, pmix="pmix" in speaks, pmi="pmi" in speaks)
    assert len(found) == bool(says)
    assert says in "".join(found)


@pytest.mark.parametrize(
    ("tasks", "nodes", "needed"),
    [("1", "1", set()), ("2", "1", {"ipc"}), ("2", "2", {"network"}), ("4", "2", {"ipc", "network"})],
)
def test_namespaces_that_tasks_must_share(tasks: str, nodes: str, needed: set[str]) -> None:
    assert set(launch.shared({"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": nodes})) == needed


@pytest.fixture
def planned(tmp_path: Path) -> Iterator[Callable[..., Plan]]:
    for name in ("host/run", "image/usr/lib64"):
        (tmp_path / name).mkdir(parents=True)
    with DirectoryTree(str(tmp_path / "host")) as host, DirectoryTree(str(tmp_path / "image")) as image:

        def planned(environ: dict[str, str]) -> Plan:
            annotations = {"squashmount.mpi": "openmpi-pmix"}
            return make_plan(Site(MODULES, Policy(), host, environ), Image(image, {}, annotations))

        yield planned


JOB = STEP | PMIX | {"PMIX_SERVER_TMPDIR": "/tmp/x", "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}


def test_pmix_lets_in_the_users_number_or_munge(planned: Callable[..., Plan], tmp_path: Path) -> None:
    assert not planned(JOB).needs, "no Open MPI in the image: nobody will wait"
    lib = tmp_path / "image/usr/lib64"
    library(lib / "libmpi.so.40")
    assert "the node has no MUNGE" in planned(JOB).needs["user"]
    (tmp_path / "host/run/munge").mkdir()
    assert "the image has no libmunge" in planned(JOB).needs["user"]
    library(lib / "libmunge.so.2")
    assert set(planned(JOB).needs) == {"ipc", "network"}
    assert not planned({name: value for name, value in JOB.items() if name not in STEP}).needs
    (warning,) = planned({name: value for name, value in JOB.items() if name not in PMIX}).warnings
    assert "openmpi-pmix: srun started 4 tasks with no PMI" in warning


def test_what_a_container_lacks() -> None:
    plan = Plan(needs={"ipc": "share memory", "network": "reach nodes", "user": "be yourself"})
    mine = {"process": {"user": {"uid": outside_uid()}}}
    spaces = {"linux": {"namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "network", "path": "/run/x"}]}}
    assert apply.unmet(mine, plan) == []
    assert apply.unmet(mine | spaces, plan) == ["share memory", "reach nodes"]
    assert apply.unmet({"process": {"user": {"uid": outside_uid() + 1}}}, plan) == ["be yourself"]
