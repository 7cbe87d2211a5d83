"""The planners nvidia and amd, on a made-up host: nodes are FIFOs (mknod needs root), libraries are real."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elf_files import library, link
from squashmount.oci_hooks import amd, cdi, nvidia
from squashmount.oci_hooks.module import Module
from squashmount.oci_hooks.plan import Contribution, Device, Hook, Mount
from squashmount.oci_hooks.planners import PLANNERS, Question, planner, trusting
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

DRIVER = "535.104.05"
LIBRARIES = "/run/squashmount/nvidia"
Planned = Callable[..., Contribution]


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def node(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Make a node with two GPUs, the second one divided (MIG), and driver 535."""
    root = tmp_path / "host"
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "gdrdrv"):
        node(root / "dev" / name)
    for minor in (12, 13, 21, 22):
        node(root / f"dev/nvidia-caps/nvidia-cap{minor}")
    proc = root / "proc/driver/nvidia"
    put(proc / "version", f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  Release Build\nGCC 12\n")
    for address, number in (("0000:0a:00.0", 1), ("0000:0b:00.0", 0)):
        facts = f"Model: \t\t NVIDIA A100\nGPU UUID: \t GPU-{number}000-aa\nDevice Minor: \t {number}\n"
        put(proc / f"gpus/{address}/information", facts)
    for place, minor in (("gi1", 12), ("gi1/ci0", 13), ("gi2", 21), ("gi2/ci0", 22)):
        put(proc / f"capabilities/gpu1/mig/{place}/access", f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\n")
    for name in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"):
        library(root / f"usr/lib64/{name}.so.{DRIVER}", soname=f"{name}.so.1")
        link(root / f"usr/lib64/{name}.so.1", f"{name}.so.{DRIVER}")
    library(root / "usr/lib64/libgdrapi.so.2", soname="libgdrapi.so.2")
    put(root / f"usr/lib64/libnvidia-torn.so.{DRIVER}", "no ELF")
    library(root / "usr/lib64/libcuda.so.470.1", soname="libcuda.so.1")
    put(root / "usr/bin/nvidia-smi")
    return root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    (root / "usr/bin").mkdir(parents=True)
    return root


@pytest.fixture
def planned(host: Path, image: Path) -> Planned:
    def planned(
        environ: dict[str, str] | None = None,
        *,
        kind: str = "nvidia",
        annotations: dict[str, str] | None = None,
        doubt: Callable[[str], str] = trusting,
        **image_env: str,
    ) -> Contribution:
        plan = planner(kind)
        assert plan is not None
        with DirectoryTree(str(host)) as host_tree, DirectoryTree(str(image)) as image_tree:
            given = annotations or {}
            variables = (environ or {}, image_env)
            question = Question(Module("gpu"), image_tree, host_tree, Policy(), given, *variables, doubt=doubt)
            return plan(question)

    return planned


def nodes(part: Contribution) -> set[str]:
    return {device.path for device in part.devices}


CONTROL = {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/gdrdrv"}
CAPS = {f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in (12, 13, 21, 22)}


def test_both_planners_can_be_named() -> None:
    assert {"nvidia", "amd"} <= set(PLANNERS)
    assert planner("nvidia") is nvidia.plan_nvidia
    assert planner("amd") is amd.plan_amd


def test_all_gpus(planned: Planned) -> None:
    part = planned()
    assert not part.missing
    assert not part.errors
    assert nodes(part) == CONTROL | CAPS | {"/dev/nvidia0", "/dev/nvidia1"}
    source = f"/usr/lib64/libcuda.so.{DRIVER}"
    assert Mount(source, f"{LIBRARIES}/libcuda.so.1") in part.mounts
    assert Mount(source, f"{LIBRARIES}/libcuda.so") in part.mounts
    assert Mount("/usr/lib64/libgdrapi.so.2", f"{LIBRARIES}/libgdrapi.so.2") in part.mounts
    assert Mount("/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi") in part.mounts
    said = str(part.mounts)
    assert "470.1" not in said, "the libraries of another driver"
    assert "torn" not in said
    assert part.env_prepend == {"LD_LIBRARY_PATH": LIBRARIES}
    assert part.env_set == {"NVIDIA_VISIBLE_DEVICES": "void"}


def test_the_selection_reaches_devices_and_environment(planned: Planned) -> None:
    # order 1 is the second PCI address, and that is /dev/nvidia0
    part = planned({"CUDA_VISIBLE_DEVICES": "1"})
    assert nodes(part) == CONTROL | {"/dev/nvidia0"}
    assert part.env_set["CUDA_VISIBLE_DEVICES"] == "0"
    assert part.env_set["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_VISIBLE_DEVICES=1" in part.reasons


def test_what_the_user_set_for_the_container_stays(planned: Planned) -> None:
    part = planned({"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}, CUDA_VISIBLE_DEVICES="1")
    assert "CUDA_VISIBLE_DEVICES" not in part.env_set
    assert any("stays as it is" in text for text in part.rejected)


def test_no_gpu_for_this_job_is_nothing_to_do(planned: Planned) -> None:
    assert planned({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}) == Contribution(
        reasons=("CUDA_VISIBLE_DEVICES=NoDevFiles: no GPU",)
    )


def test_a_gpu_that_is_not_here_stops_the_container(planned: Planned) -> None:
    part = planned({"CUDA_VISIBLE_DEVICES": "7"})
    assert "names 7" in part.errors[0]
    assert not part.devices


def test_mig_by_gpu_and_instance(planned: Planned) -> None:
    value = "MIG-GPU-1000-aa/2/0"
    part = planned({"CUDA_VISIBLE_DEVICES": value})
    assert nodes(part) == CONTROL | {"/dev/nvidia1"} | {f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in (21, 22)}
    assert part.env_set["CUDA_VISIBLE_DEVICES"] == value
    assert "does not exist" in planned({"CUDA_VISIBLE_DEVICES": "MIG-GPU-1000-aa/9/0"}).errors[0]


def test_mig_by_a_uuid_that_only_the_driver_knows(planned: Planned) -> None:
    value = "MIG-d9a47cfb-d1f2-d08c-b40e-0812b597ae69"
    part = planned({"CUDA_VISIBLE_DEVICES": value})
    assert nodes(part) == CONTROL | CAPS | {"/dev/nvidia1"}
    assert part.env_set["CUDA_VISIBLE_DEVICES"] == value


def test_mig_where_there_is_none(planned: Planned, host: Path) -> None:
    (host / "proc/driver/nvidia/capabilities").rename(host / "gone")
    assert "this node has none" in planned({"CUDA_VISIBLE_DEVICES": "MIG-d9a47cfb"}).errors[0]


def test_an_image_for_a_newer_driver_is_refused(planned: Planned) -> None:
    part = planned(NVIDIA_REQUIRE_CUDA="cuda>=12.6 brand=tesla,driver>=470,driver<471")
    assert "demands cuda>=12.6" in part.missing[0]
    assert f"driver {DRIVER}, cuda 12.2" in part.missing[0]
    assert not part.mounts
    assert not planned(NVIDIA_REQUIRE_CUDA="cuda>=12.6", NVIDIA_DISABLE_REQUIRE="1").missing


def test_compat_libraries_of_the_image_come_first_when_they_are_newer(planned: Planned, image: Path) -> None:
    put(image / "usr/local/cuda/compat/libcuda.so.560.28.03")
    part = planned(NVIDIA_REQUIRE_CUDA="cuda>=12.6")
    assert not part.missing
    assert part.env_prepend["LD_LIBRARY_PATH"] == f"/usr/local/cuda/compat:{LIBRARIES}"
    (image / "usr/local/cuda/compat/libcuda.so.560.28.03").rename(image / "usr/local/cuda/compat/libcuda.so.530.30.02")
    assert planned().env_prepend["LD_LIBRARY_PATH"] == LIBRARIES


def test_without_proc_the_nodes_are_counted(planned: Planned, host: Path) -> None:
    (host / "proc").rename(host / "gone")
    (host / "usr/lib64/libcuda.so.470.1").unlink()
    part = planned({"CUDA_VISIBLE_DEVICES": "0"})
    assert nodes(part) == CONTROL | {"/dev/nvidia0"}
    assert any(mount.source == f"/usr/lib64/libcuda.so.{DRIVER}" for mount in part.mounts)


def test_what_is_missing_is_named(planned: Planned, host: Path) -> None:
    (host / f"usr/lib64/libcuda.so.{DRIVER}").unlink()
    assert f"libcuda.so of the driver {DRIVER}" in planned().missing[0]
    for name in ("nvidia0", "nvidia1"):
        (host / "dev" / name).unlink()
    assert "no NVIDIA GPU" in planned().missing[0]
    # a site with two kinds of nodes asks for whatever is there
    for kind in ("nvidia", "amd"):
        part = planned(kind=kind, annotations={"squashmount.gpu": "auto"})
        assert not part.missing
        assert "no " in part.rejected[0]


def test_a_link_to_nothing_in_the_image_leaves_that_file_out(planned: Planned, image: Path) -> None:
    (image / "usr/bin/nvidia-smi").symlink_to("/nowhere/smi")
    part = planned()
    assert not any("nvidia-smi" in mount.target for mount in part.mounts)
    assert any("link to nothing" in text for text in part.rejected)


def vendor(host: Path, name: str, **more: Any) -> None:
    edits = {
        "deviceNodes": [{"path": "/dev/nvidiactl"}],
        "mounts": [
            {"hostPath": "/usr/bin/nvidia-smi", "containerPath": "/vendor/smi", "options": ["ro", "bind"]},
            {"hostPath": "/dev/gdrdrv", "containerPath": "/run/socket"},
        ],
        "env": ["VENDOR=yes"],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/hook",
                "args": ["hook", "ldcache"],
                "env": ["A=1"],
            },
            {"hookName": "startContainer", "path": "/usr/bin/never"},
        ],
    }
    devices = [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1", "permissions": "rwm"}]}},
        {"name": "GPU-0000-aa", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
    ]
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "containerEdits": edits, "devices": devices} | more
    put(host / name, json.dumps(spec))  # JSON is YAML too


@pytest.mark.parametrize("name", ["etc/cdi/nvidia.json", "run/cdi/nvidia.yaml"])
def test_the_vendors_file_comes_first(planned: Planned, host: Path, name: str) -> None:
    vendor(host, name)
    part = planned({"CUDA_VISIBLE_DEVICES": "1"})
    assert part.mounts == (Mount("/usr/bin/nvidia-smi", "/vendor/smi", ("ro",)),)
    assert nodes(part) == {"/dev/nvidiactl", "/dev/nvidia0"}
    assert part.env_set["VENDOR"] == "yes"
    assert part.hooks == (Hook("createContainer", "/usr/bin/hook", ("hook", "ldcache"), ("A=1",)),)
    assert part.env_prepend == {}
    assert any(f"by /{name}" in text for text in part.reasons)
    assert any("startContainer" in text for text in part.rejected)
    assert any("is a socket" in text for text in part.rejected)


def test_permissions_of_the_vendors_file_are_kept(planned: Planned, host: Path) -> None:
    vendor(host, "etc/cdi/nvidia.json")
    assert Device("/dev/nvidia1", "rwm") in planned({"CUDA_VISIBLE_DEVICES": "0"}).devices


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"containerEdits": {"mounts": [{"hostPath": "/usr/lib64/old", "containerPath": "/x"}]}},
            "/usr/lib64/old does",
        ),
        ({"devices": []}, "does not know the GPUs"),
    ],
)
def test_a_vendors_file_of_another_driver_is_passed_over(
    planned: Planned, host: Path, change: dict[str, Any], why: str
) -> None:
    vendor(host, "etc/cdi/nvidia.json", **change)
    part = planned()
    assert Mount(f"/usr/lib64/libcuda.so.{DRIVER}", f"{LIBRARIES}/libcuda.so.1") in part.mounts
    assert any(why in text for text in part.rejected)


def test_a_cdi_file_that_somebody_else_could_have_written_is_passed_over(planned: Planned, host: Path) -> None:
    vendor(host, "etc/cdi/nvidia.json")
    part = planned(doubt=lambda path: "everybody can write it" if path.endswith(".json") else "")
    assert not part.hooks
    assert any("nvidia.json is not trusted: everybody can write it" in text for text in part.rejected)


_HEAD = '"kind": "nvidia.com/gpu"'
DAMAGED = [
    *("{", "[]", "kind: [", ""),
    *(f"{{{_HEAD}, {rest}}}" for rest in ('"devices": 1', '"devices": [1]', '"containerEdits": []')),
    f'{{{_HEAD}, "containerEdits": {{"mounts": [{{"hostPath": 1, "containerPath": "/x"}}]}}}}',
    f'{{{_HEAD}, "containerEdits": {{"deviceNodes": [{{}}], "env": [1]}}}}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_cdi_file_is_passed_over(planned: Planned, host: Path, text: str) -> None:
    for name in ("a.json", "b.yaml"):
        put(host / "etc/cdi" / name, text)
    part = planned()
    assert any("libcuda" in mount.target for mount in part.mounts)
    assert any("a.json" in said for said in part.rejected)


def test_null_lists_are_empty_ones(planned: Planned, host: Path) -> None:
    names = ("0", "GPU-1000-aa", "GPU-0000-aa")
    devices = [{"name": name, "containerEdits": {"deviceNodes": None}} for name in names]
    edits = {"mounts": None, "hooks": None, "env": ["VENDOR=yes"]}
    vendor(host, "etc/cdi/nvidia.json", containerEdits=edits, devices=devices)
    assert planned().env_set["VENDOR"] == "yes"


def test_the_made_file_is_one_that_podman_takes(host: Path) -> None:
    with DirectoryTree(str(host)) as tree:
        facts = nvidia.read_host(tree)
        spec = cdi.generate(tree, facts.gpus, facts.driver)
    assert spec["cdiVersion"] == "0.5.0"
    assert [device["name"] for device in spec["devices"]] == ["0", "GPU-1000-aa", "1", "GPU-0000-aa", "all"]
    assert len(spec["devices"][-1]["containerEdits"]["deviceNodes"]) == 2
    assert "/usr/lib64/libcuda.so.1" in [mount["containerPath"] for mount in spec["containerEdits"]["mounts"]]
    assert json.loads(json.dumps(spec)) == spec


@pytest.fixture
def amd_host(host: Path) -> Path:
    node(host / "dev/kfd")
    for minor in (128, 129, 130):
        node(host / f"dev/dri/renderD{minor}")
    node(host / "dev/dri/card7")
    (host / "sys/class/drm/renderD130/device/drm/card7").mkdir(parents=True)
    topology = host / "sys/class/kfd/kfd/topology/nodes"
    put(topology / "0/properties", "cpu_cores_count 64\nsimd_count 0\ndrm_render_minor 0\n")
    put(topology / "1/properties", "simd_count 440\ndrm_render_minor 130\nunique_id 255\n")
    put(topology / "10/properties", "simd_count 440\ndrm_render_minor 128\nunique_id 4096\n")
    return host


def test_amd(planned: Planned, amd_host: Path) -> None:
    assert amd_host.exists()
    part = planned(kind="amd")
    assert nodes(part) == {"/dev/kfd", "/dev/dri/renderD130", "/dev/dri/card7", "/dev/dri/renderD128"}
    part = planned({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, kind="amd")
    assert nodes(part) == {"/dev/kfd", "/dev/dri/renderD128"}
    assert part.env_set == {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}
    part = planned({"ROCR_VISIBLE_DEVICES": "GPU-00000000000000ff"}, kind="amd")
    assert nodes(part) == {"/dev/kfd", "/dev/dri/renderD130", "/dev/dri/card7"}
    assert part.env_set == {"ROCR_VISIBLE_DEVICES": "GPU-00000000000000ff"}
    part = planned({"SLURM_STEP_GPUS": "0", "ROCR_VISIBLE_DEVICES": "1"}, kind="amd")
    assert nodes(part) == {"/dev/kfd", "/dev/dri/renderD128"}
    assert "names 5" in planned({"ROCR_VISIBLE_DEVICES": "5"}, kind="amd").errors[0]


def test_amd_without_topology_or_device(planned: Planned, amd_host: Path) -> None:
    (amd_host / "sys").rename(amd_host / "gone")
    assert nodes(planned({"ROCR_VISIBLE_DEVICES": "0"}, kind="amd")) == {"/dev/kfd", "/dev/dri/renderD128"}
    (amd_host / "dev/kfd").unlink()
    assert "no AMD GPU" in planned(kind="amd").missing[0]
