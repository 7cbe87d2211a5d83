"""Importing the configuration of the peers: what becomes of each key, and what is said about the rest."""

import copy
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peers import PODMAN_HPC
from squashmount.oci_hooks import planners
from squashmount.oci_hooks.cli import main
from squashmount.oci_hooks.importers import KINDS, Translated, draft, translate
from squashmount.oci_hooks.module import load
from squashmount.oci_hooks.plan import Plan
from squashmount.oci_hooks.planning import Image, Site, make_plan
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

from squashmount.errors import ToolError, UsageError

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(name: str, text: str) -> str:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return put


def checked(result: Translated, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Return the modules as tables, after every one went through the check of a module file."""
    tables = {}
    for name, text in result.modules.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        assert load(str(path)).name == name
        tables[name] = tomllib.loads(text)
    return tables


def planned(tmp_path: Path, name: str) -> Plan:
    """Plan an imported module on a host and for an image that have nothing."""
    for empty in ("host", "image"):
        (tmp_path / empty).mkdir(exist_ok=True)
    with DirectoryTree(str(tmp_path / "host")) as host, DirectoryTree(str(tmp_path / "image")) as image:
        one = load(str(tmp_path / f"{name}.toml"))
        site = Site({name: one}, Policy(), host, dict.fromkeys(one.allow_env, "/none"))
        return make_plan(site, Image(image, {}, {f"squashmount.{name}": "on"}))


def lost(result: Translated) -> dict[tuple[str, int], str]:
    """Return what was not translated: (file name, line) to what and why."""
    found = {(Path(one.file).name, one.line): f"{one.what}: {one.why}" for one in result.untranslated}
    assert len(found) == len(result.untranslated)
    return found


HPC = """\
name: fast-mpi
cli_arg: mpi
help: The site's MPI
hidden: True
env: ENABLE_MPI
conflicts: ["slow mpi"]
depends_on:
  - fabric
shared_run: True
additional_args:
  - -e SLURM_JOB_ID
  - -e LD_LIBRARY_PATH=/opt/m/lib:/opt/m/dep
  - -e FI_LOG=warn
  - -e DIR=$HOME/x
  - --volume=/data:/data:ro
  - --device=/dev/fuse
  - --shm-size=1g
  - --ipc=host
  - --userns keep-id
  - --privileged
  - --rm
copy:
  - ../ld.conf:/etc/ld.so.conf.d/m.conf
bind:
  - /dev/cxi*:/dev/
  - /dev/shm:/dev/shm
  - $SCRATCH:$SCRATCH
  - ~/.cache:/cache
  - /usr/lib64/libcuda*:/usr/lib64/
  - /usr/lib64/a*:/b*
  - /usr/lib64/nowhere
color: green
"""


def test_podman_hpc(write: Write, tmp_path: Path) -> None:
    result = translate("podman-hpc", [write("etc/modules.d/mpi.yaml", HPC)])
    (module,) = checked(result, tmp_path).values()
    assert module["name"] == "fast-mpi"
    assert module["help"] == "The site's MPI"
    assert module["conflicts"] == ["slow-mpi"]
    assert module["requires"] == ["fabric"]
    assert "when" not in module, "on by its name"
    assert "--annotation squashmount.fast-mpi=on" in result.modules["fast-mpi"]
    assert module["ldconfig"] is True
    assert module["env"] == {
        "pass": ["SLURM_JOB_ID"],
        "set": {"ENABLE_MPI": "1", "FI_LOG": "warn"},
        "prepend": {"LD_LIBRARY_PATH": "/opt/m/lib:/opt/m/dep"},
    }
    assert module["allow_env"] == ["SCRATCH", "HOME"]
    writable = ["rw", "nosuid", "nodev"]
    assert module["mounts"] == [
        {"source": "/data"},
        {"source": str(tmp_path / "in/etc/ld.conf"), "target": "/etc/ld.so.conf.d/m.conf", "options": writable}
        | {"optional": True},
        {"source": "$SCRATCH", "options": writable, "optional": True},
        {"source": "$HOME/.cache", "target": "/cache", "options": writable, "optional": True},
        {"source": "/usr/lib64/libcuda*", "target": "/usr/lib64/", "optional": True},
    ]
    assert module["devices"] == [{"path": "/dev/fuse"}, {"path": "/dev/cxi*"}]
    gone = lost(result)
    assert sorted(line for _, line in gone) == [4, 9, 14, 17, 20, 21, 26, 30, 31, 32]
    assert "podman exec" in gone["mpi.yaml", 9]
    assert module["podman"] == {"ipcns": "host", "userns": "keep-id"}
    assert 'shm_size = "1g" in [containers]' in gone["mpi.yaml", 17]
    assert "color" in gone["mpi.yaml", 32]


def test_without_a_yaml_reader(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ToolError) as caught:
        translate("podman-hpc", [write("mpi.yaml", HPC)])
    assert "squashmount[import]" in caught.value.hint


def test_what_podman_hpc_ships_is_imported(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps")
    subprocess.run([*pip, "--target", str(tmp_path / "hpc"), f"podman-hpc=={PODMAN_HPC}"], check=True, timeout=300)
    (folder,) = (tmp_path / "hpc").rglob("modules.d")
    files = sorted(folder.glob("*.yaml"))
    assert len(files) > 5
    result = translate("podman-hpc", [str(folder)])
    modules = checked(result, tmp_path)
    assert len(modules) == len(files)
    assert {"path": "/dev/nvidia*"} in modules["gpu"]["devices"]
    assert modules["mpich"]["conflicts"] == ["cuda-mpi", "openmpi-pmi2", "openmpi-pmix"]
    assert modules["mpich"]["env"]["pass"] == ["SLURM_*", "PALS_*", "PMI_*"]
    assert modules["cvmfs"]["mounts"][-1] == {"source": "/cvmfs", "optional": True}
    lines = {str(one).partition(" ")[0] for one in result.untranslated if "--privileged" in one.what}
    assert len(lines) == 4, "each file that says --privileged"
    assert not [error for name in modules for error in planned(tmp_path, name).errors]


SARUS_MOUNT = {
    "version": "1.0.0",
    "hook": {
        "path": "/opt/sarus/bin/mount_hook",
        "args": [
            "mount_hook",
            "--mount=type=bind,src=/usr/lib64/libmunge.so.2,dst=/usr/lib64/libmunge.so.2",
            "--mount=type=bind,source=/var/run/munge,destination=/run/munge,readonly",
            "--mount=type=bind,src=/opt/fabric/libx-fi.so,dst=<FI_PROVIDER_PATH>/libx-fi.so",
            "--mount=type=tmpfs,dst=/x",
            "--device=/dev/kgni0",
            "--device=/dev/kdreg:rw",
            "--device=/dev/a:/dev/b:r",
        ],
        "env": ["LDCONFIG_PATH=/sbin/ldconfig"],
        "timeout": 10,
    },
    "when": {"annotations": {"^com.hooks.mpi.enabled$": "^true$", "^com.hooks.mpi.type$": "^libfabric$"}},
    "stages": ["createContainer"],
}


def test_sarus_mount_hook(write: Write, tmp_path: Path) -> None:
    result = translate("sarus", [write("12-mount.json", json.dumps(SARUS_MOUNT, indent=1))])
    module = checked(result, tmp_path)["12-mount"]
    assert module["when"] == {"annotation": ["com.hooks.mpi.type=libfabric"]}
    assert module["ldconfig"] is True
    assert module["mounts"] == [
        {"source": "/usr/lib64/libmunge.so.2"},
        {"source": "/var/run/munge", "target": "/run/munge"},
    ]
    assert module["libraries"] == [{"path": "/opt/fabric/libx-fi.so", "role": "provider"}]
    assert module["devices"] == [{"path": "/dev/kgni0"}, {"path": "/dev/kdreg"}]
    assert [line for _, line in lost(result)] == [10, 13]


def test_sarus_mpi_hook(write: Write, tmp_path: Path) -> None:
    hook = {
        "path": "/opt/sarus/bin/mpi_hook",
        "env": [
            "MPI_LIBS=/usr/lib64/mv/libmpi.so.12.0.5:/usr/lib64/mv/libmpicxx.so.12.0.5",
            "MPI_DEPENDENCY_LIBS=/usr/lib64/libpsm.so.1",
            "BIND_MOUNTS=/dev/hfi1_0:/var/spool/x",
            "MPI_COMPATIBILITY_TYPE=full",
        ],
    }
    text = json.dumps({"hook": hook, "when": {"always": True}, "stages": ["createContainer"]}, indent=1)
    result = translate("sarus", [write("05-mpi.json", text)])
    module = checked(result, tmp_path)["05-mpi"]
    assert module["planner"] == "mpich"
    assert module["when"] == {"always": True}
    assert [(one["path"], one["role"]) for one in module["libraries"]] == [
        ("/usr/lib64/mv/libmpi.so.12.0.5", "primary"),
        ("/usr/lib64/mv/libmpicxx.so.12.0.5", "primary"),
        ("/usr/lib64/libpsm.so.1", "dependency"),
    ]
    assert module["devices"] == [{"path": "/dev/hfi1_0"}]
    assert module["mounts"] == [{"source": "/var/spool/x", "options": ["rw", "nosuid", "nodev"]}]
    assert "mpi_mismatch" in lost(result)["05-mpi.json", 8]


def test_other_sarus_hooks(write: Write, tmp_path: Path) -> None:
    def hook(name: str, program: str, **more: Any) -> str:
        given = {"hook": {"path": f"/opt/{program}"} | more.pop("hook", {}), "stages": ["createContainer"]} | more
        return write(f"{name}.json", json.dumps(given, indent=1))

    tools = {"args": ["nv", "prestart"], "env": ["PATH=/opt/bin"]}
    files = [
        hook("01", "glibc_hook"),
        hook("03", "nvidia-container-runtime-hook", hook=tools, when={"always": True}, stages=["prestart"]),
        hook("07", "ssh_hook", when={"annotations": {"^a$": "^true$"}}),
        hook("09", "slurm_global_sync_hook"),
        hook("10", "timestamp_hook"),
        hook("11", "amdgpu_hook", when={"always": True}),
        hook("20", "own", when={"annotations": {"^a.*$": "^true$"}, "commands": ["x"], "hasBindMounts": True}),
        hook("21", "own", when={"annotations": {"^a$": "^1$", "^b$": "^2$"}}, stages=["startContainer", "poststop"]),
    ]
    result = translate("sarus", files)
    modules = checked(result, tmp_path)
    assert sorted(modules) == ["03", "09", "10", "11", "20", "21"]
    assert [modules[name]["requires"] for name in ("09", "10")] == [["slurm-sync"], ["timestamp"]]
    assert modules["03"]["hooks"] == [
        {
            "stage": "prestart",
            "path": "/opt/nvidia-container-runtime-hook",
            "args": ["nv", "prestart"],
            "env": {"PATH": "/opt/bin"},
        }
    ]
    assert modules["11"]["planner"] == "amd"
    assert "when" not in modules["20"]
    assert [one["stage"] for one in modules["21"]["hooks"]] == ["poststop"]
    said = [str(one) for one in result.untranslated]
    for word in ("glibc_hook", "ssh_hook", "a pattern", "startContainer"):
        assert sum(word in text for text in said) == 1, word
    for word in ("when.commands", "when.hasBindMounts", "here all must hold"):
        assert sum(word in text for text in said) == 1, word


SARUS_JSON = """\
{
    "securityChecks": true,
    "OCIBundleDir": "/var/sarus/OCIBundleDir",
    "prefixDir": "/opt/sarus",
    "siteMounts": [
        {"type": "bind", "source": "/home", "destination": "/home", "flags": {}},
        {"type": "bind", "source": "/sw", "destination": "/opt/sw", "flags": {"readonly": ""}},
        {"type": "overlay", "source": "/o", "destination": "/o"}
    ],
    "siteDevices": [
        {"source": "/dev/fuse", "access": "rw"},
        {"source": "/dev/a", "destination": "/dev/b"}
    ],
    "environment": {
        "set": {"SITE": "alps", "RAW": "$HOME"},
        "prepend": {"PATH": "/sw/bin"},
        "append": {"MANPATH": "/sw/man"},
        "unset": ["MODULEPATH"]
    },
    "userMounts": {"notAllowedPaths": ["/opt"]},
    "defaultMPIType": "mpich",
    "shoeSize": 43
}
"""


def test_sarus_json(write: Write, tmp_path: Path) -> None:
    result = translate("sarus", [write("sarus.json", SARUS_JSON)])
    module = checked(result, tmp_path)["sarus-site"]
    assert module["when"] == {"always": True}
    assert module["mounts"] == [
        {"source": "/home", "options": ["rw", "nosuid", "nodev"]},
        {"source": "/sw", "target": "/opt/sw"},
    ]
    assert module["devices"] == [{"path": "/dev/fuse"}]
    assert module["env"] == {
        "unset": ["MODULEPATH"],
        "set": {"SITE": "alps"},
        "prepend": {"PATH": "/sw/bin"},
        "append": {"MANPATH": "/sw/man"},
    }
    gone = lost(result)
    assert sorted(line for _, line in gone) == [2, 3, 4, 8, 12, 15, 20, 21, 22]
    assert "forbidden" in gone["sarus.json", 20]


SHIFTER = """\
# a comment
system = mycluster
siteFs = /home:/home \\
   /scratch:/scratch:rw:rec /local:/local:perNodeCache=size=10G
siteEnv=SHIFTER_RUNTIME=1 RAW=$HOME
siteEnvAppend=PATH=/opt/udiImage/bin
siteEnvUnset=LOADEDMODULES _LMFILES_
sitePostMountHook=/etc/post.sh
defaultModules=mpich,ghost
module_mpich_copyPath = /shared/mpich
module_mpich_siteEnvPrepend = LD_LIBRARY_PATH=/opt/udiImage/modules/mpich/lib64
module_mpich_conflict = openmpi
module_mpich_userhook = /opt/udiImage/modules/mpich/bin/init.sh
module_mpich_roothook = /x.sh
module_cvmfs_siteFs = /cvmfs_nfs:/cvmfs:ro
module_cvmfs_siteEnv = SHIFTER_MODULE_CVMFS=1
module_old_siteFs = /old
module_old_enabled = 0
"""


def test_shifter(write: Write, tmp_path: Path) -> None:
    result = translate("shifter", [write("udiRoot.conf", SHIFTER)])
    modules = checked(result, tmp_path)
    assert sorted(modules) == ["cvmfs", "mpich", "shifter-site"]
    site = modules["shifter-site"]
    assert [one["source"] for one in site["mounts"]] == ["/home", "/scratch"]
    assert site["env"]["set"] == {"SHIFTER_RUNTIME": "1"}
    assert site["env"]["append"] == {"PATH": "/opt/udiImage/bin"}
    assert site["env"]["unset"] == ["LOADEDMODULES", "_LMFILES_"]
    assert modules["mpich"]["when"] == {"always": True}
    assert modules["mpich"]["mounts"] == [{"source": "/shared/mpich", "target": "/opt/udiImage/modules/mpich"}]
    assert modules["mpich"]["conflicts"] == ["openmpi"]
    assert modules["cvmfs"]["mounts"] == [{"source": "/cvmfs_nfs", "target": "/cvmfs"}]
    assert "when" not in modules["cvmfs"], "on by its name"
    gone = lost(result)
    assert sorted(line for _, line in gone) == [2, 3, 5, 8, 9, 13, 14, 18]
    assert "perNodeCache" in gone["udiRoot.conf", 3]
    assert "ghost" in gone["udiRoot.conf", 9]


EDF = """\
base_environment = ["common", "ml/pytorch.toml"]
image = "nvcr.io#nvidia/pytorch:22.12-py3"
workdir = "${SCRATCH}"
entrypoint = false
writable = true
colour = "green"
mounts = [
    "${SCRATCH}:/scratch",
    "/store/models:/models:ro+private",
    "/iso:/iso:ro+strange",
    "${NOWHERE:-}/x:/x",
    "./here:/here",
]

[env]
MODE = "production"
DEBUG = ""
HTTPS_PROXY = "${HTTPS_PROXY}"
PATH = "${PATH}:/custom/bin"
LD_LIBRARY_PATH = "/custom/lib:${LD_LIBRARY_PATH}"
CACHE = "${SCRATCH}/cache"
MAYBE = "${MAYBE:-}"

[annotations]
org.x = "1"

[annotations.com.hooks]
cxi.enabled = "true"
aws_ofi_nccl.enabled = "true"
aws_ofi_nccl.variant = "cuda12"
ssh.enabled = "true"
mpi.enabled = "false"
"""


def test_edf(write: Write, tmp_path: Path) -> None:
    result = translate("edf", [write("train.toml", EDF)])
    module = checked(result, tmp_path)["train"]
    assert module["requires"] == ["common", "pytorch", "libfabric-cxi", "nccl-plugin"]
    assert module["allow_env"] == ["SCRATCH"]
    assert module["mounts"] == [
        {"source": "${SCRATCH}", "target": "/scratch", "options": ["rw", "nosuid", "nodev"]},
        {"source": "/store/models", "target": "/models"},
        {"source": "/iso"},
    ]
    assert module["env"] == {
        "unset": ["DEBUG"],
        "pass": ["HTTPS_PROXY"],
        "set": {"MODE": "production", "CACHE": "${SCRATCH}/cache"},
        "prepend": {"LD_LIBRARY_PATH": "/custom/lib"},
        "append": {"PATH": "/custom/bin"},
    }
    gone = lost(result)
    assert sorted(line for _, line in gone) == [2, 3, 4, 5, 6, 10, 11, 12, 22, 25, 30, 31]
    assert "podman run nvcr.io/nvidia/pytorch:22.12-py3" in gone["train.toml", 2]


def test_enroot(write: Write, tmp_path: Path) -> None:
    fstab = """\
# comment
/proc /proc none x-create=dir,rbind,rw
tmpfs /tmp tmpfs x-create=dir,rw
/dev/shm /dev/shm none x-create=dir,bind,rw,nosuid,nodev,noexec
/etc/localtime /etc/localtime none x-create=file,bind,ro,nosuid,nodev,nofail,silent
/etc/hosts /etc/hosts none x-create=file,bind,ro
${SCRATCH} /scratch rbind,rw,x-move
/data /data none x-create=dir,bind,rw,nosuid,nodev,noexec
/sw
"""
    files = [
        write("mounts.d/10-system.fstab", fstab),
        write("environ.d/10-site.env", "TERM=${TERM}\nSITE='alps'\nCACHE=${SCRATCH}/c\nnonsense\n"),
        write("hooks.d/98-nvidia.sh", "#!/bin/bash\n"),
        write("hooks.d/70-own.sh", "#!/bin/bash\n"),
        write("enroot.conf", "#ENROOT_GZIP_PROGRAM gzip\nENROOT_MOUNT_HOME    yes\nENROOT_REMAP_ROOT yes\n"),
    ]
    result = translate("enroot", files)
    modules = checked(result, tmp_path)
    assert sorted(modules) == ["10-site", "10-system", "enroot-site"]
    assert all(module["when"] == {"always": True} for module in modules.values())
    assert modules["10-system"]["mounts"] == [
        {"source": "/etc/localtime", "optional": True, "create": "file"},
        {"source": "${SCRATCH}", "target": "/scratch", "options": ["rw", "nosuid", "nodev"]},
        {"source": "/data", "options": ["rw", "nosuid", "nodev", "noexec"], "create": "dir"},
    ]
    assert modules["10-site"]["env"] == {"pass": ["TERM"], "set": {"SITE": "alps", "CACHE": "${SCRATCH}/c"}}
    assert modules["enroot-site"]["requires"] == ["home"]
    gone = lost(result)
    assert sorted(gone) == [
        ("10-site.env", 4),
        *(("10-system.fstab", line) for line in (2, 3, 4, 6, 7, 9)),
        ("70-own.sh", 1),
        ("98-nvidia.sh", 1),
        ("enroot.conf", 3),
    ]
    assert "module nvidia" in gone["98-nvidia.sh", 1]


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("podman-hpc", "a.yaml", "- 1\n- 2\n"),
        ("podman-hpc", "a.yaml", "a: [\n"),
        ("sarus", "a.json", "{"),
        ("sarus", "a.json", "[]"),
        ("edf", "a.toml", "a = ["),
        ("enroot", "a.txt", ""),
        ("docker", "a.txt", ""),
        ("shifter", "a.conf", "\udcff"),
    ],
)
def test_what_is_not_such_a_file_is_an_error(write: Write, kind: str, name: str, text: str) -> None:
    path = write(name, "")
    Path(path).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        translate(kind, [path])
    assert (path if kind in KINDS else kind) in caught.value.brief
    assert caught.value.details


WORDS = [
    "",
    "/a",
    "$A",
    "a=b",
    "/a:/b",
    "/a/../b:/c",
    "'",
    "^a$",
    "--mount=type=bind,src=a,dst=b",
    "a b",
    "_x",
    "é",
    "\\x00",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=2),
    max_leaves=4,
)
WHOLE: dict[str, list[Any]] = {
    "sarus": [SARUS_MOUNT, json.loads(SARUS_JSON), {"hook": {"path": "/x", "env": ["A=b"]}, "stages": ["prestart"]}],
    "podman-hpc": [yaml.safe_load(HPC)],
    "edf": [tomllib.loads(EDF)],
}


def places(value: Any) -> list[list[Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[], *([key, *rest] for key, each in inner for rest in places(each))]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(WHOLE)))
def test_whatever_is_in_a_file_becomes_a_module_that_passes_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    table = copy.deepcopy(data.draw(st.sampled_from(WHOLE[kind])))
    *path, last = data.draw(st.sampled_from([place for place in places(table) if place]))
    at = table
    for key in path:
        at = at[key]
    at[last] = data.draw(VALUES)
    folder = tmp_path_factory.mktemp("any", numbered=True)
    file = folder / "x"
    file.write_text(tomlkit.dumps(without_null(table)) if kind == "edf" else json.dumps(table))  # JSON is YAML
    try:
        result = translate(kind, [str(file)])
    except UsageError:
        return
    checked(result, folder)


LINE_FILES = {
    "udiRoot.conf": "shifter",
    **dict.fromkeys(("10-a.env", "10-a.fstab", "enroot.conf", "9-\u00e9.sh"), "enroot"),
}
LINE_WORDS = [
    *(
        "/a",
        "$A",
        "${B}",
        "A=b",
        "A=/x:/y",
        "/a:/b:ro",
        "perNodeCache=size=1",
        "/a/../b",
        "'",
        "\\",
        "\0",
        "\x85",
        "\u00b9",
    ),
    *(
        "#",
        "=",
        ";",
        "\t",
        "x-create=dir",
        "x-create=odd",
        "ro",
        "tmpfs",
        "nofail",
        "export ",
        "0",
        "yes",
        ",",
        ":",
        "*",
    ),
    *("/dev/x", "/dev/", "/proc", "$", "${", "]]", '"""', "\ud800"),
]
LINE_KEYS = [
    *("siteFs", "siteEnv", "siteEnvPrepend", "siteEnvUnset", "defaultModules", "module_a_siteFs", "module_a_siteEnv"),
    *(
        "module_A_conflict",
        "module_\u00e9_copyPath",
        "module__enabled",
        "module_x_y_userhook",
        "ENROOT_MOUNT_HOME",
        "NO",
    ),
]
LINE = st.builds(
    lambda key, between, words: key + between + "".join(words),
    st.sampled_from(LINE_KEYS) | st.sampled_from(LINE_WORDS) | st.text(max_size=4),
    st.sampled_from(["=", " = ", " ", ""]),
    st.lists(st.sampled_from(LINE_WORDS) | st.text(max_size=4), max_size=6),
)
BYTES = st.lists(LINE, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@settings(max_examples=400, deadline=None)
@given(data=BYTES | st.binary(max_size=60), name=st.sampled_from(sorted(LINE_FILES)))
@example(data=b"siteEnvUnset=A*", name="udiRoot.conf")
def test_any_bytes_for_shifter_and_enroot(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    folder = tmp_path_factory.mktemp("any", numbered=True)
    (folder / name).write_bytes(data)
    try:
        result = translate(LINE_FILES[name], [str(folder / name)])
    except UsageError:
        return
    checked(result, folder)


@pytest.mark.parametrize("kind", ["sarus", "podman-hpc", "edf"])
@pytest.mark.parametrize("escape", ["\\u0000", "\\ud800"])
def test_texts_that_only_an_escape_can_write(write: Write, kind: str, escape: str) -> None:
    if kind == "edf":
        text = f'[env]\nA = "a{escape}"\n'
    else:
        text = f'{{"name": "a", "env": "A{escape}", "environment": {{"set": {{"A": "a{escape}"}}}}}}'
    with pytest.raises(UsageError) as caught:
        translate(kind, [write("x", text)])
    assert "x" in caught.value.brief


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_null(inner) for key, inner in value.items() if inner is not None}
    return [without_null(inner) for inner in value if inner is not None] if isinstance(value, list) else value


def test_two_files_of_one_name_are_an_error(write: Write) -> None:
    files = [write("a/x.yaml", "name: x\n"), write("b/x.yaml", "name: x\n")]
    with pytest.raises(UsageError, match="module x"):
        translate("podman-hpc", files)


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(UsageError, match="No file of"):
            translate(kind, [str(tmp_path)])


def test_the_command_writes_modules_that_pass_check(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = write("mpi.yaml", HPC), tmp_path / "made"
    assert main(["import", "--from", "podman-hpc", path, "-o", str(made)]) == 0
    said = capsys.readouterr().out
    assert str(made / "fast-mpi.toml") in said
    assert f"not translated: {path}:9: shared_run: " in said
    assert main(["check", str(made / "fast-mpi.toml")]) == 0
    assert "fine" in capsys.readouterr().out
    (made / "fast-mpi.toml").write_text("mine")
    assert main(["import", "--from", "podman-hpc", path, "-o", str(made)]) == 2
    assert (made / "fast-mpi.toml").read_text() == "mine"
    assert main(["import", "--from", "podman-hpc", path, "-o", str(made), "--force", "--json"]) == 0
    assert 'name = "fast-mpi"' in (made / "fast-mpi.toml").read_text()
    assert main(["import", "--from", "podman-hpc", path]) == 0
    assert "### fast-mpi.toml\n# from podman-hpc's module fast-mpi\n" in capsys.readouterr().out


def test_what_imported_modules_read_is_what_the_planners_ask_for() -> None:
    assert {name: planners.READS[name] for name in draft.READS} == draft.READS
