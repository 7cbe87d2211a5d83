"""GPUs under real Podman: nodes that lead to /dev/zero, driver libraries that are real ELF files, CDI files."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from elf_files import library, link
from lab import Done, Node, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

DRIVER = "535.104.05"
NODES = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "kfd", "dri/renderD128", "dri/renderD129")
LOOK = """
cd /dev; ls -d nvidia* kfd dri/* 2>/dev/null
for node in nvidia* kfd; do [ ! -c $node ] || head -c 2 $node | od -An -tx1 | tr -d ' \\n'; done
echo
ls /run/squashmount/nvidia 2>/dev/null; env | grep -E '^(CUDA|NVIDIA|ROCR|VENDOR|LD_LIB).*=' | sort
"""


@pytest.fixture
def host(lab: Path) -> Iterator[Path]:
    """Put nodes and a driver on the host; everything lies in /dev, /etc and the lab's directory, which end with it."""
    for name in NODES:
        path = Path("/dev", name)
        path.parent.mkdir(exist_ok=True)
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # as /dev/zero
        path.chmod(0o666)
    driver = lab / "driver"
    for name in ("libcuda", "libnvidia-ml"):
        library(driver / f"{name}.so.{DRIVER}", soname=f"{name}.so.1")
        link(driver / f"{name}.so.1", f"{name}.so.{DRIVER}")
    driver.chmod(0o755)
    conf = Path("/etc/ld.so.conf.d/00-fake-driver.conf")
    conf.write_text(f"{driver}\n")
    yield driver
    conf.unlink()
    shutil.rmtree(driver)
    shutil.rmtree("/etc/cdi", ignore_errors=True)
    for name in NODES:
        Path("/dev", name).unlink()


class Site:
    """The hook with the shipped modules, for one node."""

    def __init__(self, lab: Path, node: Node) -> None:
        self.node, self.dir = node, lab / "gpu-hooks"
        self.dir.mkdir(mode=0o755)
        policy = self.dir / "hooks.toml"
        policy.write_text("modules = []\n")
        self.command = str(node.product / "bin/squashmount-hooks")
        run(self.command, "install", "--dir", str(self.dir), "--policy", str(policy)).ok()

    def look(self, image: str, *options: str, **job: str) -> list[str]:
        self.node.env |= job
        try:
            return self.podman("run", "--rm", *options, image, "sh", "-c", LOOK).ok().splitlines()
        finally:
            for name in job:
                del self.node.env[name]

    def podman(self, *argv: str) -> Done:
        return self.node.podman("--hooks-dir", str(self.dir), *argv)


@pytest.fixture
def site(lab: Path, compute: Node, host: Path) -> Iterator[Site]:
    assert host.exists()
    made = Site(lab, compute)
    yield made
    shutil.rmtree(made.dir)


NVIDIA = ("--annotation", "squashmount.gpu=nvidia")
LIBRARIES = ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"]
SEARCH = "LD_LIBRARY_PATH=/run/squashmount/nvidia"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_jobs_gpu_and_the_driver(site: Site, busybox: str, runtime: str) -> None:
    if not shutil.which(runtime):
        pytest.skip(f"needs {runtime}")
    seen = site.look(busybox, *NVIDIA, "--runtime", runtime, CUDA_VISIBLE_DEVICES="1")
    assert seen == [
        *("nvidia-uvm", "nvidia1", "nvidiactl", "00" * 6),
        *LIBRARIES,
        *("CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=0", SEARCH, "NVIDIA_VISIBLE_DEVICES=void"),
    ]


def test_both_gpus_of_the_step_with_the_users_own_id(site: Site, busybox: str) -> None:
    seen = site.look(busybox, *NVIDIA, "--userns=keep-id", SLURM_STEP_GPUS="0,1", CUDA_VISIBLE_DEVICES="1")
    assert seen[:5] == ["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl", "00" * 8]
    assert "CUDA_VISIBLE_DEVICES=1" in seen


def test_an_image_that_demands_a_newer_driver_does_not_run(site: Site, busybox: str) -> None:
    done = site.podman("run", "--rm", *NVIDIA, "--env", "NVIDIA_REQUIRE_CUDA=cuda>=12.9", busybox, "true")
    assert done.code != 0
    assert "demands cuda>=12.9" in done.err


def test_the_vendors_cdi_file(site: Site, busybox: str, host: Path) -> None:
    edits = {
        "deviceNodes": [{"path": "/dev/nvidiactl"}],
        "mounts": [
            {
                "hostPath": str(host / "libcuda.so.1"),
                "containerPath": "/vendor/libcuda.so.1",
                "options": ["ro", "nosuid", "nodev", "bind"],
            }
        ],
        "env": ["VENDOR=yes"],
    }
    device = {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "containerEdits": edits, "devices": [device]}
    Path("/etc/cdi").mkdir(exist_ok=True)
    Path("/etc/cdi/nvidia.json").write_text(json.dumps(spec))
    hooked = site.look(busybox, *NVIDIA, CUDA_VISIBLE_DEVICES="0")
    assert hooked[:3] == ["nvidia0", "nvidiactl", "00" * 4]
    assert "VENDOR=yes" in hooked
    assert SEARCH not in hooked
    # Podman itself, without the hook, makes the same of it
    plain = site.look(busybox, "--device", "nvidia.com/gpu=0")
    assert plain[:3] == hooked[:3]
    assert "VENDOR=yes" in plain


CACHED = "ls -d /dev/nvidia*; ls /run/squashmount/nvidia; grep -c libcuda.so.1 /etc/ld.so.cache; env | grep NVIDIA"


def test_podman_takes_the_cdi_file_that_is_made_here(site: Site, busybox: str) -> None:
    """Podman alone, without the hook: the driver's directory is in the container's ld.so.cache."""
    done = run(site.command, "cdi", "--kind", "nvidia", "-o", "/etc/cdi/made.json")
    assert f"2 GPUs, driver {DRIVER}, libraries found on the host" in done.err
    shared = ["/dev/nvidia-uvm", "/dev/nvidiactl"]
    for name, nodes in (("1", ["/dev/nvidia1"]), ("all", ["/dev/nvidia0", "/dev/nvidia1"])):
        argv = ("run", "--rm", "--device", f"nvidia.com/gpu={name}", busybox, "sh", "-c", CACHED)
        seen = site.node.podman(*argv).ok().splitlines()
        assert sorted(seen[: len(nodes) + 2]) == sorted([*nodes, *shared])
        assert seen[len(nodes) + 2 :] == [*LIBRARIES, "1", "NVIDIA_VISIBLE_DEVICES=void"]


def test_podman_takes_the_cdi_file_for_amd(site: Site, busybox: str) -> None:
    run(site.command, "cdi", "--kind", "amd", "-o", "/etc/cdi/amd.json").ok()
    look = ("sh", "-c", "cd /dev; ls -d kfd dri/*")
    seen = site.node.podman("run", "--rm", "--device", "amd.com/gpu=1", busybox, *look).ok().splitlines()
    assert seen == ["dri/renderD129", "kfd"]


def test_amd(site: Site, busybox: str) -> None:
    seen = site.look(busybox, "--annotation", "squashmount.gpu=amd", ROCR_VISIBLE_DEVICES="1")
    assert seen == ["dri/renderD129", "kfd", "00" * 2, "ROCR_VISIBLE_DEVICES=0"]
