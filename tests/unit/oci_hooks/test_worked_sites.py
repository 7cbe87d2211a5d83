"""The two sites of docs/modules.md: their files go through `check` and `plan` as they stand there, on made-up nodes."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elf_files import library, link
from squashmount.oci_hooks import cli

DOCS = Path(__file__).parents[3] / "docs/modules.md"
PRIVATE = "/run/squashmount/lib"
MODULE_VALUES = {"mpi": "auto", "gpu": "auto"}
"""What `podman --module NAME` says for these; for all others `on`."""

Plan = dict[str, Any]


def section(title: str) -> list[str]:
    """Return the indented lines of a section."""
    text = DOCS.read_text().partition(f"### {title}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    return [line[4:] if line.startswith("    ") else "" for line in text.splitlines()]


def files(title: str) -> dict[str, str]:
    """Return the files of a site by their names: each begins with its path in a comment."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in section(title):
        if path := re.match(r"# /etc/squashmount/(?:modules\.d/)?([\w-]+\.toml)", line):
            name = path[1]
        if line.startswith("srun "):
            name = ""
        if name:
            found.setdefault(name, []).append(line)
    return {name: "\n".join(lines) + "\n" for name, lines in found.items()}


def commands(title: str) -> list[list[str]]:
    """Return the modules of each command that users type."""
    return [re.findall(r"--module (\S+)", line) for line in section(title) if line.startswith("srun ")]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Make what all nodes have: a C library and shared memory."""
    root = tmp_path / "host"
    (root / "dev").mkdir(parents=True)
    library(root / "usr/lib/libc.so.6", defines={"GLIBC_2.2.5": ["printf"]})
    nodes(root, "xpmem")
    return root


def nodes(root: Path, *names: str) -> None:
    for name in names:
        path = root / "dev" / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)  # "other", as a device is; mknod needs root


def mpi(root: Path, folder: str, number: str, *needs: Path) -> None:
    made = root / folder / f"libmpi.so.12.{number}"
    functions = ["MPI_Init", "MPI_Send"]
    libc = root / "usr/lib/libc.so.6"
    library(made, soname="libmpi.so.12", defines={"": functions}, uses=["printf"], needs=[libc, *needs])
    link(made.parent / "libmpi.so.12", made.name)


@pytest.fixture
def planned(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Plan]:
    image = tmp_path / "image"
    library(image / "usr/lib/libc.so.6", defines={"GLIBC_2.2.5": ["printf"]})
    mpi(image, "usr/lib", "1.8")
    site = tmp_path / "site"

    def planned(title: str, *modules: str, code: int = 0, **job: str) -> Plan:
        for name, text in files(title).items():
            path = site / name if name == "hooks.toml" else site / "modules.d" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        shown = [str(site / "hooks.toml"), *map(str, (site / "modules.d").iterdir())]
        assert cli.main(["check", *shown]) == 0, capsys.readouterr().err
        policy = site / "used.toml"
        policy.write_text(f'modules = ["{site}/modules.d"]\n{(site / "hooks.toml").read_text()}')
        for name in [name for name in os.environ if name.startswith(("SLURM_", "MPICH_", "CUDA_", "PMI", "FI_"))]:
            monkeypatch.delenv(name)
        for name, value in job.items():
            monkeypatch.setenv(name, value)
        asked = [f"--annotation=squashmount.{name}={MODULE_VALUES.get(name, 'on')}" for name in modules]
        capsys.readouterr()
        argv = ["plan", "--json", "--host", str(host), "--rootfs", str(image), "--policy", str(policy), *asked]
        assert cli.main(argv) == code
        made: Plan = json.loads(capsys.readouterr().out)
        assert bool(made["errors"]) is bool(code)
        return made

    return planned


def sources(plan: Plan) -> dict[str, str]:
    return {mount["target"]: mount["source"] for mount in plan["mounts"]}


def devices(plan: Plan) -> set[str]:
    return {device["path"] for device in plan["devices"]}


SLINGSHOT = "A site with Slingshot and NVIDIA"
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0", "PMI_RANK": "0", "SLINGSHOT_VNIS": "9"}


@pytest.fixture
def slingshot(host: Path) -> Path:
    """Make a node of a Cray EX with GPUs."""
    nodes(host, "cxi0", "cxi1", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "gdrdrv")
    cuda = library(host / "usr/lib/libcuda.so.550.54", soname="libcuda.so.1", defines={"": ["cuInit"]})
    link(host / "usr/lib/libcuda.so.1", cuda.name)
    cxi = library(host / "usr/lib/libcxi.so.1", defines={"": ["cxi"]})
    fabric = library(host / "opt/cray/libfabric/1.22/lib64/libfabric.so.1", defines={"FABRIC_1.7": ["fi"]}, needs=[cxi])
    library(host / "usr/lib/libfabric.so.1", defines={"FABRIC_1.0": ["fi_old"]})
    mpich = host / "opt/cray/pe/mpich/8.1.28"
    mpi(host, "opt/cray/pe/mpich/8.1.28/ofi/gnu/12.3/lib-abi-mpich", "2.8", fabric)
    link(mpich.parent / "default", "8.1.28")
    library(mpich / "gtl/lib/libmpi_gtl_cuda.so.0", needs=[cuda])
    library(host / "usr/lib/libnccl-net.so", soname="libnccl-net.so", uses=["fi"], needs=[fabric])
    return host


def test_slingshot(slingshot: Path, planned: Callable[..., Plan]) -> None:
    assert slingshot.exists()
    solver, training = commands(SLINGSHOT)
    plan = planned(SLINGSHOT, *solver, **JOB, MPICH_GPU_SUPPORT_ENABLED="1")
    found = sources(plan)
    cray = "/opt/cray/pe/mpich/8.1.28"
    assert found["/usr/lib/libmpi.so.12.1.8"] == f"{cray}/ofi/gnu/12.3/lib-abi-mpich/libmpi.so.12.2.8"
    assert found[f"{PRIVATE}/libfabric.so.1"] == "/opt/cray/libfabric/1.22/lib64/libfabric.so.1"
    assert found[f"{PRIVATE}/libmpi_gtl_cuda.so.0"] == f"{cray}/gtl/lib/libmpi_gtl_cuda.so.0"
    assert "/run/squashmount/nvidia/libcuda.so.1" in found
    assert {"/dev/cxi0", "/dev/cxi1", "/dev/xpmem", "/dev/nvidia0", "/dev/gdrdrv"} <= devices(plan)
    assert "/dev/nvidia1" not in devices(plan), "the other job's"
    assert plan["env_prepend"]["LD_PRELOAD"] == f"{PRIVATE}/libmpi_gtl_cuda.so.0"
    assert plan["env_set"].items() >= {"PMI_RANK": "0", "SLINGSHOT_VNIS": "9"}.items()
    plan = planned(SLINGSHOT, *training, **JOB)
    assert sources(plan)[f"{PRIVATE}/libnccl-net.so"] == "/usr/lib/libnccl-net.so"
    assert "/dev/nvidia0" in devices(plan)
    assert "/usr/lib/libmpi.so.12.1.8" not in sources(plan)


def test_slingshot_on_a_login_node(host: Path, planned: Callable[..., Plan]) -> None:
    assert host.exists()
    assert planned(SLINGSHOT)["modules"] == []
    plan = planned(SLINGSHOT, "mpi", code=11)
    assert any("/dev/cxi*" in text for text in plan["errors"]), "asked for, and not there: no slow job"


INFINIBAND = "A site with InfiniBand"


def test_infiniband(host: Path, planned: Callable[..., Plan]) -> None:
    nodes(host, "infiniband/uverbs0", "infiniband/rdma_cm", "knem")
    card = host / "sys/class/infiniband_verbs/uverbs0/device"
    card.mkdir(parents=True)
    (card.parent / "ibdev").write_text("mlx5_0\n")
    (host / "sys/bus/pci/drivers/mlx5_core").mkdir(parents=True)
    link(card / "driver", "/sys/bus/pci/drivers/mlx5_core")
    versions = {"IBVERBS_1.1": ["ibv_open"], "IBVERBS_PRIVATE_34": ["verbs_init"]}
    verbs = library(host / "usr/lib/libibverbs.so.1", defines=versions)
    library(host / "usr/lib/libibverbs/libmlx5-rdmav34.so", uses=["verbs_init"], needs=[verbs])
    (host / "etc/libibverbs.d").mkdir(parents=True)
    (host / "etc/libibverbs.d/mlx5.driver").write_text("driver mlx5\n")
    ucs = library(host / "usr/lib/libucs.so.0")
    library(host / "usr/lib/ucx/libuct_ib.so.0", uses=["ibv_open"], needs=[verbs])
    mpi(host, "opt/mvapich/lib", "0.5", ucs)
    (solver,) = commands(INFINIBAND)
    plan = planned(INFINIBAND, *solver, SLURM_JOB_ID="7", UCX_TLS="rc", PMI_RANK="1")
    assert {"infiniband", "xpmem", "ucx", "mpich"} <= set(plan["modules"])
    found = sources(plan)
    assert found["/usr/lib/libmpi.so.12.1.8"] == "/opt/mvapich/lib/libmpi.so.12.0.5"
    assert found[f"{PRIVATE}/libibverbs.so.1"] == "/usr/lib/libibverbs.so.1"
    assert found["/usr/lib/libibverbs"] == "/usr/lib/libibverbs", "the image has no rdma-core for this card"
    assert found[f"{PRIVATE}/ucx"] == "/usr/lib/ucx"
    assert devices(plan) == {f"/dev/{name}" for name in ("infiniband/uverbs0", "infiniband/rdma_cm", "xpmem", "knem")}
    assert plan["env_set"].items() >= {"UCX_TLS": "rc", "PMI_RANK": "1"}.items()
    assert any("downgrade" in text for text in plan["warnings"]), "mpi_mismatch = warn"


def test_infiniband_on_a_login_node(host: Path, planned: Callable[..., Plan]) -> None:
    assert host.exists()
    assert planned(INFINIBAND)["modules"] == []
