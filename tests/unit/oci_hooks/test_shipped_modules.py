"""The modules that come with squashmount: each is read, can be switched on, and does on a made-up host what it says."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elf_files import library
from squashmount.oci_hooks import module, policy
from squashmount.oci_hooks.plan import Device, Plan
from squashmount.oci_hooks.planners import PLANNERS, READS
from squashmount.oci_hooks.planning import Image, Site, make_plan
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

FILES = sorted(Path(policy.SHIPPED_DIR).glob("*.toml"))
MODULES = {path.stem: module.load(str(path)) for path in FILES}
Planning = Callable[..., Plan]

NODES = (
    *("infiniband/uverbs0", "infiniband/uverbs1", "infiniband/rdma_cm", "infiniband/umad0", "xpmem", "knem", "gdrdrv"),
    *("cxi0", "cxi1"),
)
DIRECTORIES = ("cvmfs", "home/bob", "scratch/bob", "run/munge", "etc/slurm", "spool/pmix", "tmp/spmix_appdir_7_42.0")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    root = tmp_path / "host"
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True)
    for name in NODES:
        (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(root / "dev" / name)  # "other", as a device is; mknod needs root
    (root / "usr/bin").mkdir(parents=True)
    for name in ("srun", "sbatch"):
        (root / "usr/bin" / name).touch()
    return root


@pytest.fixture
def planned(host: Path, tmp_path: Path) -> Iterator[Planning]:
    (tmp_path / "image").mkdir()
    with DirectoryTree(str(host)) as host_tree, DirectoryTree(str(tmp_path / "image")) as image_tree:

        def planned(environ: dict[str, str] | None = None, **asked: str) -> Plan:
            annotations = {f"squashmount.{name.replace('_', '-')}": value for name, value in asked.items()}
            site = Site(MODULES, Policy(), host_tree, environ or {})
            return make_plan(site, Image(image_tree, {}, annotations))

        yield planned


def targets(plan: Plan) -> set[str]:
    assert not plan.errors
    return {mount.target for mount in plan.mounts}


def nodes(plan: Plan) -> set[str]:
    assert not plan.errors
    return {device.path for device in plan.devices}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_each_is_complete(path: Path) -> None:
    one = MODULES[path.stem]
    assert one.name == path.stem
    assert one.help
    assert one.planner in {"", *PLANNERS}
    assert {*one.requires, *one.conflicts} <= set(MODULES)
    assert not one.when.always, "nothing is injected that nobody asked for"


def test_nothing_is_on_by_itself(planned: Planning) -> None:
    assert planned({"HOME": "/home/bob", "SLURM_JOB_ID": "42", "PMI_FD": "3"}).empty


def test_home_and_scratch(planned: Planning) -> None:
    plan = planned({"HOME": "/home/bob", "SCRATCH": "/scratch/bob"}, home="on", scratch="on")
    assert targets(plan) == {"/home/bob", "/scratch/bob"}
    assert all(mount.options == ("rw", "nosuid", "nodev") for mount in plan.mounts)
    assert plan.env_set == {"SCRATCH": "/scratch/bob"}
    assert "no variable SCRATCH" in planned({}, scratch="on").errors[0]


def test_cvmfs_follows_what_is_mounted_later(planned: Planning) -> None:
    (mount,) = planned(cvmfs="on").mounts
    assert mount.target == "/cvmfs"
    assert {"ro", "rslave"} <= set(mount.options)


def test_infiniband(planned: Planning, host: Path) -> None:
    expected = {"/dev/infiniband/uverbs0", "/dev/infiniband/uverbs1", "/dev/infiniband/rdma_cm"}
    assert nodes(planned(infiniband="on")) == expected
    assert nodes(planned(ucx="on")) == expected | {"/dev/xpmem", "/dev/knem", "/dev/gdrdrv"}
    (host / "dev/xpmem").unlink()
    assert Device("/dev/xpmem") not in planned(ucx="on").devices
    for number in (0, 1):
        (host / f"dev/infiniband/uverbs{number}").unlink()
    assert "uverbs* is not on this host" in planned(infiniband="on").errors[0]


def test_pmix(planned: Planning, host: Path) -> None:
    environ = {"PMIX_RANK": "1", "PMIX_SERVER_TMPDIR": "/spool/pmix", "SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0"}
    environ["SLURM_JOB_UID"] = "7"
    # what another user has made for our job's number
    (host / "tmp/spmix_appdir_8_42.0").mkdir()
    plan = planned(environ | {"HOME": "/x", "SECRET": "y"}, mpi="openmpi-pmix")
    assert targets(plan) == {"/spool/pmix", "/tmp/spmix_appdir_7_42.0", "/run/munge"}
    assert plan.env_set == environ


def test_pmi2(planned: Planning) -> None:
    environ = {"PMI_FD": "3", "PMI_RANK": "0", "SLURM_JOB_ID": "42"}
    plan = planned(environ | {"PMIX": "no"}, mpi="openmpi-pmi2")
    assert plan.env_set == environ
    assert not targets(plan)


def test_a_word_that_no_module_knows_is_an_error(planned: Planning) -> None:
    (error,) = planned(mpi="mpich2").errors
    for word in ("auto", "openmpi-pmix", "openmpi-pmi2"):
        assert word in error


def test_gpu_of_whatever_vendor(planned: Planning) -> None:
    plan = planned(gpu="auto")
    assert plan.modules == ("amd", "nvidia")
    assert not plan.errors
    assert len(plan.rejected) == 2
    assert "no NVIDIA GPU" in planned(gpu="nvidia").errors[0]


def test_ssh(planned: Planning, host: Path, tmp_path: Path) -> None:
    shell = tmp_path / "image/bin/sh"
    shell.parent.mkdir()
    shell.touch()
    assert "no sshd (package openssh-server)" in planned(ssh="on").errors[0]
    needed = library(host / "usr/lib64/libmade.so.1")
    for name in ("usr/sbin/sshd", "usr/bin/ssh", "usr/bin/env", "usr/libexec/openssh/sshd-session"):
        library(host / name, needs=[needed])
    assert "the loader of the host's sshd was not found" in planned(ssh="on").errors[0]


def test_slurm_client(planned: Planning, host: Path) -> None:
    library(host / "usr/lib64/libmunge.so.2")
    plan = planned({"SLURM_JOB_ID": "42"}, slurm_client="on")
    expected = {"/run/munge", "/etc/slurm", "/usr/bin/srun", "/usr/bin/sbatch"}
    assert expected <= targets(plan)
    assert "/run/squashmount/lib/libmunge.so.2" in targets(plan)
    (host / "run/munge").rmdir()
    assert "/run/munge is not on this host" in planned(slurm_client="on").errors[0]


def test_slingshot(planned: Planning, host: Path) -> None:
    for version in ("1.15", "1.20"):
        library(host / f"opt/cray/libfabric/{version}/lib64/libfabric.so.1")
    library(host / "usr/lib64/libcxi.so.1")
    library(host / "usr/lib64/libnccl-net.so")
    environ = {"SLINGSHOT_VNIS": "7", "FI_CXI_RX_MATCH_MODE": "hybrid"}
    plan = planned(environ, libfabric_cxi="on")
    assert nodes(plan) == {"/dev/cxi0", "/dev/cxi1"}
    assert targets(plan) == {f"/run/squashmount/lib/{name}" for name in ("libfabric.so.1", "libcxi.so.1")}
    assert any("/1.20/" in mount.source for mount in plan.mounts)
    assert plan.env_prepend == {"LD_LIBRARY_PATH": "/run/squashmount/lib"}
    assert plan.env_set == environ
    plan = planned(environ, nccl_plugin="on")
    assert plan.modules == ("libfabric-cxi", "nccl-plugin")
    assert plan.env_set["NCCL_SOCKET_IFNAME"] == "hsn"
    assert "/run/squashmount/lib/libnccl-net.so" in targets(plan)


@pytest.mark.parametrize("one", MODULES.values(), ids=MODULES)
def test_what_is_read_of_the_containers_environment_is_named(one: module.Module) -> None:
    planner = one.planner or ("libraries" if one.libraries else "")
    assert one.image_env == READS.get(planner, ())
