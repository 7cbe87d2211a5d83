"""CUDA-aware MPI: the GPU layer of Cray MPICH, GDRCopy, and UCX's plugins, on a made-up host with GPUs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elf_files import library, link
from squashmount.oci_hooks import module
from squashmount.oci_hooks.plan import Device, Plan
from squashmount.oci_hooks.planning import Image, Site, make_plan
from squashmount.oci_hooks.policy import SHIPPED_DIR, Policy
from squashmount.oci_hooks.tree import DirectoryTree

PRIVATE = "/run/squashmount/lib"
DRIVER = "/run/squashmount/nvidia"
MPICH = "opt/cray/pe/mpich/8.1.28"
GTL = f"/{MPICH}/gtl/lib/libmpi_gtl_cuda.so.0"
SHIPPED = {path.stem: module.load(str(path)) for path in Path(SHIPPED_DIR).glob("*.toml")}
CRAY = module.built(
    {
        "name": "mpich",
        "planner": "mpich",
        "when": {"annotation": ["squashmount.mpi=auto"]},
        "libraries": [{"path": f"/{MPICH}/ofi/gnu/12.3/lib-abi-mpich/libmpi.so.12", "role": "primary"}],
        "env": {"pass": ["MPICH_*"]},
    },
    "test",
)
WANTED = {"MPICH_GPU_SUPPORT_ENABLED": "1"}
Planned = Callable[..., Plan]


def mpi(tree: Path, folder: str, *needs: Path, name: str = "libmpi.so.12.2.2") -> None:
    made = library(tree / folder / name, soname="libmpi.so.12", defines={"": ["MPI_Init"]}, needs=needs)
    link(made.parent / "libmpi.so.12", made.name)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    root = tmp_path / "host"
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "gdrdrv"):
        (root / "dev").mkdir(parents=True, exist_ok=True)
        os.mkfifo(root / "dev" / name)
    library(root / "usr/lib/libc.so.6", defines={"GLIBC_2.2.5": ["printf"]})
    cuda = library(root / "usr/lib/libcuda.so.535.1", soname="libcuda.so.1", defines={"": ["cuInit"]})
    link(root / "usr/lib/libcuda.so.1", cuda.name)
    library(root / "usr/lib/libgdrapi.so.2", defines={"": ["gdr_open"]})
    cudart = library(root / "usr/lib/libcudart.so.12", defines={"": ["cudaMalloc"]})
    library(root / GTL[1:], uses=["cuInit"], needs=[cuda, cudart])
    mpi(root, f"{MPICH}/ofi/gnu/12.3/lib-abi-mpich")
    return root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    library(root / "usr/lib/libc.so.6", defines={"GLIBC_2.2.5": ["printf"]})
    mpi(root, "usr/lib", name="libmpi.so.12.1.8")
    return root


@pytest.fixture
def planned(host: Path, image: Path) -> Iterator[Planned]:
    with DirectoryTree(str(host)) as host_tree, DirectoryTree(str(image)) as image_tree:

        def planned(environ: dict[str, str] | None = None, *, gpu: str = "auto", mpich: module.Module = CRAY) -> Plan:
            asked = {"squashmount.mpi": "auto", "squashmount.gpu": gpu}
            site = Site({**SHIPPED, "mpich": mpich}, Policy(), host_tree, environ or {})
            return make_plan(site, Image(image_tree, {}, asked))

        yield planned


def sources(plan: Plan) -> dict[str, str]:
    assert plan.errors == ()
    return {mount.target: mount.source for mount in plan.mounts}


def test_the_gpu_layer_comes_with_the_mpi(planned: Planned) -> None:
    plan = planned(WANTED)
    found = sources(plan)
    assert found[f"{PRIVATE}/libmpi_gtl_cuda.so.0"] == GTL
    assert found[f"{PRIVATE}/libcudart.so.12"] == "/usr/lib/libcudart.so.12"
    assert plan.env_prepend["LD_PRELOAD"] == f"{PRIVATE}/libmpi_gtl_cuda.so.0"
    assert plan.env_prepend["LD_LIBRARY_PATH"] == f"{DRIVER}:{PRIVATE}", "the driver's directory, and compat, are first"
    assert plan.env_set["MPICH_GPU_SUPPORT_ENABLED"] == "1"
    assert Device("/dev/gdrdrv") in plan.devices
    assert f"{DRIVER}/libgdrapi.so.2" in found
    assert f"mpich: {GTL} is preloaded, for MPICH_GPU_SUPPORT_ENABLED=1 of the job." in plan.reasons


@pytest.mark.parametrize("environ", [{}, {"MPICH_GPU_SUPPORT_ENABLED": "0"}])
def test_it_is_not_preloaded_unless_the_job_wants_it(planned: Planned, environ: dict[str, str]) -> None:
    plan = planned(environ)
    assert f"{PRIVATE}/libmpi_gtl_cuda.so.0" in sources(plan)
    assert "LD_PRELOAD" not in plan.env_prepend
    assert any("not preloaded: the job has no MPICH_GPU_SUPPORT_ENABLED=1" in text for text in plan.rejected)


def test_without_gpus_there_is_no_layer(planned: Planned, host: Path) -> None:
    assert not [target for target in sources(planned(WANTED, gpu="off")) if "gtl" in target]
    (host / "dev/nvidiactl").unlink()
    assert not [target for target in sources(planned(WANTED)) if "gtl" in target]


def test_an_mpi_that_loads_it_itself(planned: Planned, host: Path) -> None:
    folder = host / MPICH / "ofi/gnu/12.3/lib-abi-mpich"
    (folder / "libmpi.so.12").unlink()
    link(host / "usr/lib/libmpi_gtl_cuda.so.0", GTL)
    mpi(host, f"{MPICH}/ofi/gnu/12.3/lib-abi-mpich", host / GTL[1:])
    plan = planned(WANTED)
    assert f"{PRIVATE}/libmpi_gtl_cuda.so.0" in sources(plan)
    assert "LD_PRELOAD" not in plan.env_prepend


def test_the_cuda_runtime_may_be_the_images(planned: Planned, host: Path, image: Path) -> None:
    (host / "usr/lib/libcudart.so.12").unlink()
    plan = planned(WANTED)
    assert not [target for target in sources(plan) if "gtl" in target], "nobody has libcudart"
    library(image / "usr/lib/libcudart.so.12", defines={"": ["cudaMalloc"]})
    plan = planned(WANTED)
    assert f"{PRIVATE}/libmpi_gtl_cuda.so.0" in sources(plan)
    assert f"{PRIVATE}/libcudart.so.12" not in sources(plan)
    assert any("is the image's: the host has no libcudart.so.12" in text for text in plan.reasons)


def test_rocm(planned: Planned, host: Path) -> None:
    os.mkfifo(host / "dev/kfd")
    (host / "dev/dri").mkdir()
    os.mkfifo(host / "dev/dri/renderD128")
    library(host / MPICH / "gtl/lib/libmpi_gtl_hsa.so.0")
    plan = planned(WANTED, gpu="amd")
    assert plan.env_prepend["LD_PRELOAD"] == f"{PRIVATE}/libmpi_gtl_hsa.so.0"
    assert not [target for target in sources(plan) if "cuda" in target]


def test_ucx_with_gdrcopy(planned: Planned, host: Path) -> None:
    """MPICH over UCX: its plugins for CUDA come with it, and what they need."""
    uct = library(host / "usr/lib/libuct.so.0", defines={"": ["uct_open"]})
    library(host / "usr/lib/ucx/libuct_cuda_gdrcopy.so.0", uses=["gdr_open"], needs=[host / "usr/lib/libgdrapi.so.2"])
    ucs = library(host / "usr/lib/libucs.so.0", defines={"": ["ucs_init"]})
    mpi(host, "usr/lib", ucs, uct)
    plan = planned(mpich=SHIPPED["mpich"])
    found = sources(plan)
    assert found[f"{PRIVATE}/ucx"] == "/usr/lib/ucx"
    assert found[f"{PRIVATE}/libgdrapi.so.2"] == "/usr/lib/libgdrapi.so.2"
    assert Device("/dev/gdrdrv") in plan.devices
    assert "LD_PRELOAD" not in plan.env_prepend
