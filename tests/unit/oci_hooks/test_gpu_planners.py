"""The planners nvidia and amd, on a made-up host: nodes are FIFOs (mknod needs root), libraries are real."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elf_files import library, link
from squashmount.oci_hooks import amd, cli, nvidia
from squashmount.oci_hooks.module import Module
from squashmount.oci_hooks.plan import Contribution, Device, Hook, Mount
from squashmount.oci_hooks.planners import PLANNERS, Question, planner, run_here, run_nothing, trusting
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

from squashmount.errors import ToolError

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
        run: Callable[..., str] = run_nothing,
        **image_env: str,
    ) -> Contribution:
        plan = planner(kind)
        assert plan is not None
        with DirectoryTree(str(host)) as host_tree, DirectoryTree(str(image)) as image_tree:
            given = annotations or {}
            variables = (environ or {}, image_env)
            question = Question(Module("gpu"), image_tree, host_tree, Policy(), given, *variables, doubt=doubt, run=run)
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


UUIDS = {0: "MIG-d9a47cfb-d1f2-d08c-b40e-0812b597ae69", 1: "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"}
SMI_L = f"""GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0000-aa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1000-aa)
  MIG 3g.20gb     Device  0: (UUID: {UUIDS[0]})
  MIG 1g.5gb      Device  1: (UUID: {UUIDS[1]})
"""
SMI_X = """<nvidia_smi_log><gpu id="00000000:0B:00.0"><uuid>GPU-0000-aa</uuid><mig_devices>None</mig_devices></gpu>
<gpu id="00000000:0A:00.0"><mig_devices>
<mig_device><index>0</index><gpu_instance_id>2</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>
<mig_device><index>1</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>
</mig_devices><uuid>GPU-1000-aa</uuid></gpu></nvidia_smi_log>
"""
GI1 = {f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in (12, 13)}
GI2 = {f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in (21, 22)}


def program(host: Path, name: str, script: str) -> Callable[..., str]:
    """Put a program on the host; return what runs the host's programs."""
    put(host / name[1:], f"#!/bin/sh\n{script}")
    (host / name[1:]).chmod(0o755)
    return lambda *argv: run_here(f"{host}{argv[0]}", *argv[1:])


def printing(text: str, arguments: str) -> str:
    return f"if [ \"$*\" = '{arguments}' ]; then cat <<'END'\n{text}END\nexit; fi\n"


@pytest.fixture
def smi(host: Path) -> Callable[..., str]:
    script = printing(SMI_L, "-L") + printing(SMI_X, "-q -x") + "exit 9\n"
    return program(host, "/usr/bin/nvidia-smi", script)


@pytest.fixture
def smi_of_old(host: Path) -> Callable[..., str]:
    return program(host, "/usr/bin/nvidia-smi", printing(SMI_L, "-L") + "echo '<nvidia_smi_log></nvidia_smi_log>'\n")


def test_mig_by_a_uuid_that_only_the_driver_knows(planned: Planned) -> None:
    part = planned({"CUDA_VISIBLE_DEVICES": UUIDS[0]})
    assert nodes(part) == CONTROL | CAPS | {"/dev/nvidia1"}
    assert part.env_set["CUDA_VISIBLE_DEVICES"] == UUIDS[0]
    (why,) = [text for text in part.reasons if "only the driver knows" in text]
    assert why.endswith("so all are given")
    assert "is not started" in why


@pytest.mark.parametrize(
    ("value", "expected", "inside"),
    [
        (UUIDS[0], GI2, UUIDS[0]),
        (UUIDS[1], GI1, UUIDS[1]),
        ("MIG-c6d4f1ef", GI1, "MIG-c6d4f1ef"),
        (f"{UUIDS[1]},{UUIDS[0]}", CAPS, f"{UUIDS[1]},{UUIDS[0]}"),
        ("MIG-GPU-1000-aa/1/0", GI1, "MIG-GPU-1000-aa/1/0"),
        ("nvidia1:mig0", GI2, UUIDS[0]),
        ("0:1", GI1, UUIDS[1]),
    ],
)
def test_mig_as_nvidia_smi_lists_them(
    planned: Planned, smi: Callable[..., str], value: str, expected: set[str], inside: str
) -> None:
    part = planned({"CUDA_VISIBLE_DEVICES": value}, run=smi)
    assert nodes(part) == CONTROL | expected | {"/dev/nvidia1"}
    assert part.env_set["CUDA_VISIBLE_DEVICES"] == inside


def test_mig_of_slurm(planned: Planned, smi: Callable[..., str]) -> None:
    part = planned({"SLURM_STEP_GPUS": "nvidia1:mig1", "CUDA_VISIBLE_DEVICES": "0"}, run=smi)
    assert nodes(part) == CONTROL | GI1 | {"/dev/nvidia1"}
    assert part.env_set["CUDA_VISIBLE_DEVICES"] == "0"
    none = planned({"SLURM_STEP_GPUS": "nvidia1:mig1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, run=smi)
    assert none.devices == ()


def test_an_instance_whose_place_nobody_tells(planned: Planned, smi_of_old: Callable[..., str]) -> None:
    part = planned({"CUDA_VISIBLE_DEVICES": UUIDS[0]}, run=smi_of_old)
    assert nodes(part) == CONTROL | CAPS | {"/dev/nvidia1"}
    assert any("does not say where it is, so all of this GPU are given" in text for text in part.reasons)
    doubted = planned(
        {"CUDA_VISIBLE_DEVICES": UUIDS[0]}, run=smi_of_old, doubt=lambda path: "odd" if "smi" in path else ""
    )
    assert nodes(doubted) >= CAPS
    assert any("nvidia-smi is not trusted: odd" in text for text in doubted.reasons)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("MIG-ffff", "names MIG-ffff, which nvidia-smi does not list"),
        ("MIG-GPU-1000-aa/9/0", "which does not exist on GPU 0"),
        ("MIG-GPU-1000-aa/x", "which does not exist on GPU 0"),
        ("nvidia0:mig0", "names nvidia0:mig0, which this node has not"),
        ("7:0", "names 7:0, which this node has not"),
        ("MIG-GPU-1000-aa/1/0,0", "names 0, which this node has not"),
    ],
)
def test_an_instance_that_is_not_here_stops_the_container(
    planned: Planned, smi: Callable[..., str], value: str, why: str
) -> None:
    part = planned({"CUDA_VISIBLE_DEVICES": value}, run=smi)
    assert not part.devices
    assert why in part.errors[0]


def test_a_single_instance_needs_no_question(planned: Planned, host: Path) -> None:
    (host / "proc/driver/nvidia/capabilities/gpu1/mig/gi2").rename(host / "gone")
    part = planned({"CUDA_VISIBLE_DEVICES": UUIDS[0]})
    assert nodes(part) == CONTROL | GI1 | {"/dev/nvidia1"}
    assert not any("only the driver" in text for text in part.reasons)


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


def lists(host: Path, *more: str) -> Callable[..., str]:
    """Make nvidia-container-cli of a host: `list` prints devices, programs, libraries, a socket, firmware."""
    put(host / "lib/firmware/nvidia/535/gsp.bin")
    node(host / "run/nvidia-persistenced/socket")
    for stem in ("libcuda", "libnvidia-ml", "libnvidia-encode", "libnvidia-glcore", "libnvidia-brandnew"):
        library(host / f"opt/nv/{stem}.so.535", soname=f"{stem}.so.1")
    put(host / "opt/nv/libnvidia-cfg.so.535", "torn")
    lines = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap12"]
    lines += ["/usr/bin/nvidia-smi", *(f"/opt/nv/{path.name}" for path in sorted((host / "opt/nv").iterdir()))]
    lines += ["/run/nvidia-persistenced/socket", "/lib/firmware/nvidia/535/gsp.bin", "/gone", *more]

    # without --compat32
    script = printing("\n".join(lines) + "\n", "--user list") + "exit 9\n"
    return program(host, "/usr/bin/nvidia-container-cli", script)


INFO = f"""NVRM version:   {DRIVER}
CUDA version:   12.2

Device Index:   0
Device Minor:   1
Model:          NVIDIA A100
GPU UUID:       GPU-1000-aa
Bus Location:   00000000:0a:00.0

Device Index:   1
Device Minor:   0
GPU UUID:       GPU-0000-aa
Bus Location:   00000000:0b:00.0
"""


def hide_uuids(host: Path) -> None:
    for path in (host / "proc/driver/nvidia/gpus").glob("*/information"):
        path.write_text(path.read_text().replace("000-aa", "???-??"))


@pytest.mark.parametrize("tool", ["/usr/bin/nvidia-container-cli", "/usr/bin/nvidia-smi"])
def test_uuids_that_proc_hides_are_asked_for(planned: Planned, host: Path, tool: str) -> None:
    hide_uuids(host)
    assert "names GPU-0000, which this node has not" in planned({"CUDA_VISIBLE_DEVICES": "GPU-0000"}).errors[0]
    # nvidia-smi counts by PCI address: order 0 is /dev/nvidia1
    smi = "GPU 0: NVIDIA A100 (UUID: GPU-1000-aa)\nGPU 1: NVIDIA A100 (UUID: GPU-0000-aa)\n"
    script = printing(INFO, "--user info") + printing(smi, "-L") + "exit 9\n"
    part = planned({"CUDA_VISIBLE_DEVICES": "GPU-0000"}, run=program(host, tool, script))
    assert not part.errors
    assert nodes(part) == CONTROL | {"/dev/nvidia0"}


def test_a_version_that_proc_does_not_show_is_asked_for(planned: Planned, host: Path) -> None:
    (host / "proc/driver/nvidia/version").unlink()
    for path in list((host / "usr/lib64").glob("libcuda.so.*")):
        path.unlink()
    run = program(host, "/usr/bin/nvidia-container-cli", printing(INFO, "--user info") + "exit 9\n")
    part = planned(run=run, NVIDIA_REQUIRE_CUDA="cuda>=12.6")
    assert f"driver {DRIVER}, cuda 12.2" in part.missing[0]


def shown(part: Contribution) -> set[str]:
    return {mount.target.removeprefix(f"{LIBRARIES}/") for mount in part.mounts}


def test_what_nvidia_container_cli_lists(planned: Planned, host: Path) -> None:
    thirty_two = library(host / "opt/nv32/libcuda.so.535", soname="libcuda.so.1")
    data = bytearray(thirty_two.read_bytes())
    data[4] = 1  # ELFCLASS32
    thirty_two.write_bytes(data)
    part = planned({"CUDA_VISIBLE_DEVICES": "1"}, run=lists(host, "/opt/nv32/libcuda.so.535"))
    assert nodes(part) == {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/gdrdrv", "/dev/nvidia0"}, "only the job's GPU"
    assert Mount("/opt/nv/libcuda.so.535", f"{LIBRARIES}/libcuda.so.1") in part.mounts
    assert {
        "libnvidia-brandnew.so",
        "libgdrapi.so.2",
        "/usr/bin/nvidia-smi",
        "/lib/firmware/nvidia/535/gsp.bin",
    } <= shown(part)
    assert not [mount for mount in part.mounts if "nv32" in mount.source or "socket" in mount.source]
    assert not [mount for mount in part.mounts if "libnvidia-cfg" in mount.source], "torn"
    assert any("by nvidia-container-cli" in text for text in part.reasons)
    assert part.env_prepend == {"LD_LIBRARY_PATH": LIBRARIES}


def test_a_vendors_file_comes_before_the_vendors_tool(planned: Planned, host: Path) -> None:
    vendor(host, "etc/cdi/nvidia.json")
    part = planned({"CUDA_VISIBLE_DEVICES": "1"}, run=lists(host))
    assert any("by /etc/cdi/nvidia.json" in text for text in part.reasons)


def test_programs_of_the_host_are_run_without_the_jobs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_THE_JOB", "x")
    assert run_here("/usr/bin/env").splitlines() == ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    with pytest.raises(ToolError, match="not installed"):
        run_here("/usr/bin/no-such-program")
    with pytest.raises(ToolError, match="another host"):
        run_nothing("/usr/bin/env")


@pytest.mark.parametrize(
    ("script", "trusted", "why"),
    [
        ("echo initialization error >&2; exit 1", True, "failed with exit status 1"),
        ("echo /dev/nvidiactl", True, "it lists no libcuda.so"),
        ("exit 3", False, "is not trusted: odd"),
    ],
)
def test_a_tool_that_does_not_work_is_passed_over(
    planned: Planned, host: Path, script: str, trusted: bool, why: str
) -> None:
    run = program(host, "/usr/bin/nvidia-container-cli", script)
    part = planned(run=run, doubt=lambda path: "" if trusted or "cli" not in path else "odd")
    assert Mount(f"/usr/lib64/libcuda.so.{DRIVER}", f"{LIBRARIES}/libcuda.so.1") in part.mounts
    assert any(why in text for text in part.rejected)
    assert any("found on the host" in text for text in part.reasons)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ("utility", {"libnvidia-ml", "nvidia-smi"}),
        ("compute, utility", {"libcuda", "libnvidia-ml", "libgdrapi", "nvidia-smi"}),
        ("video,compute", {"libcuda", "libnvidia-encode", "libgdrapi"}),
        ("display", {"libnvidia-glcore"}),
        ("all", {"libcuda", "libnvidia-ml", "libnvidia-encode", "libnvidia-glcore", "libgdrapi", "nvidia-smi"}),
        ("", {"libcuda", "libnvidia-ml", "libnvidia-encode", "libnvidia-glcore", "libgdrapi", "nvidia-smi"}),
    ],
)
def test_capabilities(planned: Planned, host: Path, capabilities: str, expected: set[str]) -> None:
    part = planned(run=lists(host), NVIDIA_DRIVER_CAPABILITIES=capabilities)
    assert not part.missing
    found = {Path(name).name.partition(".so")[0] for name in shown(part)}
    assert found == expected | {"libnvidia-brandnew", "gsp.bin"}, "what nobody knows stays"


def test_capabilities_of_what_is_found(planned: Planned) -> None:
    part = planned(NVIDIA_DRIVER_CAPABILITIES="utility")
    assert "libnvidia-ml.so.1" in shown(part)
    assert "libcuda.so.1" not in shown(part)


def test_the_cdi_command_prints_what_podman_takes(
    host: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cdi", "--host", str(host)]) == 0
    said = capsys.readouterr()
    assert f"2 GPUs, driver {DRIVER}, libraries found on the host" in said.err
    spec = json.loads(said.out)
    assert (spec["cdiVersion"], spec["kind"]) == ("0.5.0", "nvidia.com/gpu")
    names = ["0", "GPU-1000-aa", "0:0", "MIG-GPU-1000-aa/1/0", "0:1", "MIG-GPU-1000-aa/2/0", "1", "GPU-0000-aa", "all"]
    assert [device["name"] for device in spec["devices"]] == names
    (instance,) = (device for device in spec["devices"] if device["name"] == "0:1")
    paths = [one["path"] for one in instance["containerEdits"]["deviceNodes"]]
    assert paths == ["/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"]
    (hook,) = spec["containerEdits"]["hooks"]
    assert hook["hookName"] == "createContainer"
    assert hook["args"][1:] == ["ldconfig", LIBRARIES]
    assert cli.main(["cdi", "--host", str(host), "--kind", "nvidia", "-o", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == spec
    assert cli.main(["cdi", "--host", str(host), "-o", str(tmp_path / "x.json/y.json")]) == 6
    assert "y.json cannot be written" in capsys.readouterr().err
    assert cli.main(["cdi", "--host", str(host), "--kind", "amd"]) == 9
    assert "has no amd GPU" in capsys.readouterr().err


def test_the_cdi_command_for_amd(amd_host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cdi", "--host", str(amd_host)]) == 9
    assert "GPUs of both vendors" in capsys.readouterr().err
    assert cli.main(["cdi", "--host", str(amd_host), "--kind", "amd"]) == 0
    spec = json.loads(capsys.readouterr().out)
    assert [device["name"] for device in spec["devices"]] == [
        "0",
        "GPU-00000000000000ff",
        "1",
        "GPU-0000000000001000",
        "all",
    ]
    assert spec["kind"] == "amd.com/gpu"
    assert spec["containerEdits"] == {"deviceNodes": [{"path": "/dev/kfd", "permissions": "rw"}]}


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
