"""The example configurations of the peers' documentation go through `import`, and what comes out passes `check`.

podman-hpc's own files come from PyPI (test_importers.py). The texts here are ours; each has the keys, conditions and
rules of one example, which is named: Sarus 1.7 (doc/config/*.rst, etc/templates), Shifter (doc/config/udiRoot.conf.rst,
doc/modules.rst, doc/mpi/mpich_abi.rst, mpi_support/udiRoot.conf, extra/CI/base_udiRoot.conf), podman-hpc
(etc/nersc-plug.yaml, tests/modules.d, etc/modules.d before 1.0).
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from squashmount.oci_hooks.cli import main

Import = Callable[..., tuple[dict[str, Any], list[str]]]


@pytest.fixture
def imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Import:
    """Run the commands as a site would: import, then check what was written."""

    def imported(kind: str, files: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
        folder, made = tmp_path / "in", tmp_path / "made"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        assert main(["import", "--from", kind, *(str(folder / name) for name in files), "-o", str(made), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        written = sorted(made.glob("*.toml"))
        if written:
            assert main(["check", *map(str, written)]) == 0
        capsys.readouterr()
        lost = [f"{one['what']}: {one['why']}" for one in said["untranslated"]]
        return {path.stem: tomllib.loads(path.read_text()) for path in written}, lost

    return imported


def hook(program: str, stage: str = "createContainer", when: str = "", **more: Sequence[str]) -> str:
    """Return a hook file; `when` is the Sarus option that switches it on, as `sarus run --ssh`."""
    condition = {"annotations": {f"^com.hooks.{when}.enabled$": "^true$"}} if when else {"always": True}
    whole = {"version": "1.0.0", "hook": {"path": program, **more}, "when": condition, "stages": [stage]}
    return json.dumps(whole, indent=4)


BIN = "/opt/sarus/bin"
BASE = ["HOOK_BASE_DIR=/home", f"PASSWD_FILE={BIN}/../etc/passwd"]
SARUS_HOOKS = {
    "00-timestamp-hook.json": hook(f"{BIN}/timestamp_hook", env=["TIMESTAMP_HOOK_MESSAGE=After-runtime"]),
    "01-glibc-hook.json": hook(
        f"{BIN}/glibc_hook", when="glibc", env=["LDD_PATH=/usr/bin/ldd", "GLIBC_LIBS=/lib64/libc.so.6"]
    ),
    "03-nvidia-container-toolkit.json": hook(
        f"{BIN}/nvidia-container-runtime-hook",
        "prestart",
        args=["nvidia-container-runtime-hook", f"-config={BIN}/config.toml", "prestart"],
        env=["PATH=/usr/local/libnvidia-container/bin", "LD_LIBRARY_PATH=/usr/local/libnvidia-container/lib"],
    ),
    "05-mpi-hook.json": hook(
        f"{BIN}/mpi_hook",
        when="mpi",
        env=[
            "LDCONFIG_PATH=/sbin/ldconfig",
            "MPI_LIBS=/usr/lib64/mvapich2/libmpi.so.12.0.5:/usr/lib64/mvapich2/libmpicxx.so.12.0.5",
            "MPI_DEPENDENCY_LIBS=",
            "BIND_MOUNTS=",
        ],
    ),
    "07-ssh-hook.json": hook(
        f"{BIN}/ssh_hook",
        "createRuntime",
        when="ssh",
        env=[*BASE, "DROPBEAR_DIR=/opt/sarus/dropbear", "SERVER_PORT=15263"],
        args=["ssh_hook", "start-ssh-daemon"],
    ),
    "09-slurm-global-sync-hook.json": hook(f"{BIN}/slurm_global_sync_hook", when="slurm-global-sync", env=BASE),
    "11-amdgpu-hook.json": hook(f"{BIN}/amdgpu_hook"),
    "12-mount-hook.json": hook(
        f"{BIN}/mount_hook",
        args=[
            "mount_hook",
            "--mount=type=bind,src=/usr/lib/libexample.so.1,dst=/usr/local/lib/libexample.so.1",
            "--mount=type=bind,src=/etc/configs,dst=/etc/host_configs,readonly",
            "--device=/dev/example:rw",
        ],
        env=["LDCONFIG_PATH=/sbin/ldconfig"],
    ),
    "mount-hook-slurm.json": hook(
        f"{BIN}/mount_hook",
        when="slurm",
        args=[
            "mount_hook",
            *(
                f"--mount=type=bind,src={path},dst={path}"
                for path in ("/usr/bin/srun", "/etc/slurm", "/usr/lib64/slurm")
            ),
            "--mount=type=bind,src=/var/run/munge,destination=/run/munge",
        ],
        env=["LDCONFIG_PATH=/sbin/ldconfig"],
    ),
}


def test_the_hooks_of_sarus_manual(imported: Import) -> None:
    made, lost = imported("sarus", SARUS_HOOKS)
    on = {name: one["when"] for name, one in made.items()}
    assert on["05-mpi-hook"] == {"annotation": ["com.hooks.mpi.enabled=true"]}
    assert on["09-slurm-global-sync-hook"] == {"annotation": ["com.hooks.slurm-global-sync.enabled=true"]}
    assert on["11-amdgpu-hook"] == on["12-mount-hook"] == {"always": True}
    assert made["00-timestamp-hook"]["requires"] == ["timestamp"]
    assert made["03-nvidia-container-toolkit"]["hooks"][0]["args"][-1] == "prestart"
    assert [one["role"] for one in made["05-mpi-hook"]["libraries"]] == ["primary", "primary"]
    assert made["09-slurm-global-sync-hook"]["requires"] == ["slurm-sync"]
    assert made["12-mount-hook"]["mounts"] == [
        {"source": "/usr/lib/libexample.so.1", "target": "/usr/local/lib/libexample.so.1"},
        {"source": "/etc/configs", "target": "/etc/host_configs"},
    ]
    assert [one["source"] for one in made["mount-hook-slurm"]["mounts"]][-2:] == ["/usr/lib64/slurm", "/var/run/munge"]
    for word in ("HOOK_BASE_DIR=/home: containers meet in", "PASSWD_FILE", "TIMESTAMP_HOOK_MESSAGE", "glibc_hook: "):
        assert sum(text.startswith(word) for text in lost) == 1, word


SARUS_SITE = {
    "securityChecks": True,
    "OCIBundleDir": "/var/sarus/OCIBundleDir",
    "rootfsFolder": "rootfs",
    "prefixDir": "/opt/sarus",
    "hooksDir": "/opt/sarus/etc/hooks.d",
    "tempDir": "/tmp",
    "localRepositoryBaseDir": "/home",
    "centralizedRepositoryDir": "/var/sarus/central",
    "skopeoPath": "/usr/bin/skopeo",
    "umociPath": "/usr/bin/umoci",
    "mksquashfsPath": "/usr/sbin/mksquashfs",
    "mksquashfsOptions": "-comp gzip",
    "initPath": "/usr/bin/tini",
    "runcPath": "/usr/bin/runc",
    "ramFilesystemType": "tmpfs",
    "siteMounts": [{"type": "bind", "source": "/home", "destination": "/home", "flags": {}}],
    "siteDevices": [{"source": "/dev/fuse", "access": "rw"}],
    "environment": {"set": {"A": "value"}, "prepend": {"B": "/first"}, "append": {"B": "/last"}, "unset": ["C", "D"]},
    "userMounts": {"notAllowedPrefixesOfPath": ["/etc", "/var"], "notAllowedPaths": ["/opt"]},
    "seccompProfile": "/opt/sarus/etc/seccomp/default.json",
    "apparmorProfile": "sarus-default",
    "selinuxLabel": "system_u:system_r:x:s0",
    "selinuxMountLabel": "system_u:object_r:x:s0",
    "containersPolicy": {"path": "/opt/sarus/etc/policy.json", "enforce": False},
    "containersRegistries.dPath": "/opt/sarus/etc/registries.d",
    "defaultMPIType": "mpich",
    "enablePMIxv3Support": False,
}


def test_the_configuration_of_sarus_manual(imported: Import) -> None:
    made, lost = imported("sarus", {"sarus.json": json.dumps(SARUS_SITE, indent=4)})
    site = made["sarus-site"]
    assert site["mounts"] == [{"source": "/home", "options": ["rw", "nosuid", "nodev"]}]
    assert site["devices"] == [{"path": "/dev/fuse"}]
    assert site["env"] == {
        "unset": ["C", "D"],
        "set": {"A": "value"},
        "prepend": {"B": "/first"},
        "append": {"B": "/last"},
    }
    assert len(lost) == len(SARUS_SITE) - 3, "every other key has its line"
    assert not [text for text in lost if "not a key that Sarus reads" in text]


def test_an_example_with_a_comma_missing_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed in Sarus' configuration reference, between selinuxMountLabel and containersPolicy."""
    broken = json.dumps(SARUS_SITE, indent=4).replace('s0",\n    "containersPolicy', 's0"\n    "containersPolicy')
    (tmp_path / "sarus.json").write_text(broken)
    assert main(["import", "--from", "sarus", str(tmp_path / "sarus.json")]) == 2
    said = capsys.readouterr().err
    line = broken[: broken.index('"containersPolicy')].count("\n") + 1
    assert "sarus.json is not JSON." in said
    assert f"line {line} " in said


UDI_ROOT = """\
# everything Shifter's CI and its GPU manual set
udiMount=/var/udiMount
loopMount=/var/udiLoopMount
imagePath=/images
udiRootPath=/opt/shifter/default
sitePreMountHook=/etc/shifter/premount.sh
sitePostMountHook=/etc/shifter/postmount.sh
optUdiImage=/usr/libexec/shifter/opt/udiImage
etcPath=/etc/shifter/shifter_etc_files
allowLocalChroot=1
autoLoadKernelModule=0
mountUdiRootWritable=1
maxGroupCount=31
modprobePath=/sbin/modprobe
mkfsXfsPath=/sbin/mkfs.xfs
rootfsType=tmpfs
siteFs=/home:/home \\
        /var/spool/slurm \\
        /shared /var/opt/cray/alps:/var/opt/cray/alps:rec /etc/opt/cray/wlm_detect:/etc/opt/cray/wlm_detect
siteEnv=SHIFTER_RUNTIME=1
siteEnvAppend=PATH=/opt/udiImage/bin
siteEnvPrepend=LD_LIBRARY_PATH=/opt/mpi/lib:/opt/mpi/misc PATH=/opt/mpi/bin
siteEnvUnset=LOADEDMODULES _LMFILES_
imageGateway=http://localhost:5000
batchType=slurm
system=mycluster
defaultImageType=docker
nodeContextPrefix=
populateEtcDynamically = 1
nvidiaLib64Path=/gpu-support/nvidia/lib64
siteResources=/site-resources
defaultModules = MPICH

module_cvmfs_siteFs = /cvmfs_nfs:/cvmfs
module_cvmfs_siteEnv = SHIFTER_MODULE_CVMFS=1
module_MPICH_copyPath = /usr/lib/shifter/modules/mpich
module_MPICH_siteEnvPrepend = LD_LIBRARY_PATH=/opt/udiImage/modules/MPICH/lib64
module_MPICH_siteEnvUnset = MPICH_GPU
module_MPICH_userhook = /opt/udiImage/modules/MPICH/bin/init.sh
module_MPICH_conflict = openmpi
module_MPICH_enabled = 1
module_bare_copyPath = modules/bare
"""


def test_what_shifters_manual_configures(imported: Import) -> None:
    made, lost = imported("shifter", {"udiRoot.conf": UDI_ROOT})
    assert sorted(made) == ["cvmfs", "mpich", "shifter-site"]
    assert [one["source"] for one in made["shifter-site"]["mounts"]] == [
        *("/home", "/var/spool/slurm", "/shared", "/var/opt/cray/alps", "/etc/opt/cray/wlm_detect"),
    ]
    assert made["shifter-site"]["env"]["prepend"] == {
        "LD_LIBRARY_PATH": "/opt/mpi/lib:/opt/mpi/misc",
        "PATH": "/opt/mpi/bin",
    }
    mpich = made["mpich"]
    assert mpich["when"] == {"always": True}
    assert mpich["mounts"] == [{"source": "/usr/lib/shifter/modules/mpich", "target": "/opt/udiImage/modules/MPICH"}]
    assert mpich["env"]["unset"] == ["MPICH_GPU"]
    assert made["cvmfs"]["env"] == {"set": {"SHIFTER_MODULE_CVMFS": "1"}}
    assert any("nvidiaLib64Path: the module nvidia" in text for text in lost)
    assert any("modules/bare" in text and "not an absolute path" in text for text in lost)
    assert len(lost) == 25, lost


HPC = {
    "01-module.yaml": """\
name: module1
cli_arg: module1
help: Example
env: ENABLE_MODULE1
copy:
  - /etc/motd:/a/motd
bind:
  - /etc/hosts*:/etc
  - /dev/null:/null
""",
    "02-module.yaml": """\
name: module2
cli_arg: module2
annotation: module2
env: ENABLE_MODULE2
copy:
  - /etc/motd:/motd2
""",
    "gpu.yaml": """\
name: gpu
env: ENABLE_GPU
copy:
  - ../podman-hpc/01-gpu.conf:/etc/ld.so.conf.d/01-gpu.conf
  - /usr/lib64/libnv*:/usr/lib64/libnv*
  - /usr/lib64/nvidia/libOpenCL*:/usr/lib64/libOpenCL*
  - /opt/a*/lib*:/opt/b/lib*
bind:
  - /dev/nvidia*:/dev/nvidia*
  - /dev/nvidiactl:/dev/nvidiactl
""",
}


def test_what_older_podman_hpcs_had(imported: Import) -> None:
    made, lost = imported("podman-hpc", HPC)
    assert sorted(made) == ["gpu", "module1", "module2"]
    assert made["gpu"]["devices"] == [{"path": "/dev/nvidia*"}, {"path": "/dev/nvidiactl"}]
    assert [(one["source"], one["target"]) for one in made["gpu"]["mounts"][1:]] == [
        ("/usr/lib64/libnv*", "/usr/lib64/"),
        ("/usr/lib64/nvidia/libOpenCL*", "/usr/lib64/"),
    ]
    assert [text.partition(":")[0] for text in lost] == ["/etc/hosts*", "annotation", "/opt/a*/lib*"]
