"""Module files: what they may say, and what is said about a mistake."""

import json
from pathlib import Path

import pytest
from squashmount.oci_hooks import module, module_keys, policy
from squashmount.oci_hooks.module import DeviceRule, EnvRules, HookRule, LibraryRule, MountRule, When

from squashmount.errors import UsageError
from squashmount.trust import require_trusted

FULL = """
name = "everything"
help = "One of each."
conflicts = ["other"]
requires = ["base"]
planner = "mpich"
ldconfig = true
allow_env = ["SCRATCH"]
[when]
always = false
annotation = ["squashmount.mpi=auto"]
label = ["org.site.gpu"]
env = ["SLURM_JOB_ID"]
[[mounts]]
source = "$SCRATCH/data"
target = "/scratch"
options = ["rw", "nosuid"]
optional = true
create = "dir"
[[copies]]
source = "/etc/site.conf"
mode = "0600"
[[devices]]
path = "/dev/nvidia*"
[env]
set = { A = "1" }
prepend = { PATH = "/opt/bin" }
append = { MANPATH = "/opt/man" }
unset = ["B"]
pass = ["SLURM_PROCID"]
[[libraries]]
path = "/usr/lib64/libmpi.so.12"
[[libraries]]
soname = "libfabric.so.1"
role = "dependency"
[[hooks]]
stage = "createContainer"
path = "/usr/bin/true"
args = ["true"]
env = { X = "y" }
"""


def write(tmp_path: Path, text: str, name: str = "site.toml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_everything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    found = module.load(path)
    assert found.name == "everything"
    assert found.origin == path
    assert found.when == When(annotation=("squashmount.mpi=auto",), label=("org.site.gpu",), env=("SLURM_JOB_ID",))
    assert found.mounts == (MountRule("$SCRATCH/data", "/scratch", ("rw", "nosuid"), optional=True, create="dir"),)
    assert found.devices == (DeviceRule("/dev/nvidia*", optional=True),)
    assert found.env == EnvRules(
        set={"A": "1"},
        prepend={"PATH": "/opt/bin"},
        append={"MANPATH": "/opt/man"},
        unset=("B",),
        passed=("SLURM_PROCID",),
    )
    assert found.libraries == (
        LibraryRule(path="/usr/lib64/libmpi.so.12"),
        LibraryRule(soname="libfabric.so.1", role="dependency"),
    )
    assert found.hooks == (HookRule("createContainer", "/usr/bin/true", ("true",), {"X": "y"}),)


def test_the_name_is_the_files(tmp_path: Path) -> None:
    assert module.load(write(tmp_path, "", "ucx.toml")).name == "ucx"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[mounts]]\nsorce = "/a"', r"mounts\[0\].sorce: unknown key \(did you mean source\?\)"),
        ('mount = "/a"', r"mount: unknown key \(did you mean mounts\?\)"),
        ("[[mounts]]\n", r"mounts\[0\].source: is missing"),
        ('[[mounts]]\nsource = "relative"', r"mounts\[0\].source: 'relative' is not allowed \(an absolute path"),
        ('[[mounts]]\nsource = "/a"\noptions = ["ro", "sync"]', r"options\[1\]: 'sync' is not allowed \(one of ro,"),
        ('[[mounts]]\nsource = "/a/../b"', r"mounts\[0\]: a path contains \.\."),
        ('[[mounts]]\nsource = "/$HOME"', r"mounts\[0\].source: \$HOME is not in allow_env"),
        ('[env]\nset = { A = "${X}" }', r"env.set.A: \$X is not in allow_env"),
        ("[when]\nalways = 1", "when.always: must be true or false"),
        ('[when]\nenv = ["1X"]', r"when.env\[0\]: '1X' is not allowed"),
        ("[[libraries]]\n", r"libraries\[0\]: needs either path or soname"),
        ('[[hooks]]\nstage = "startContainer"\npath = "/x"', "hooks.0..stage: 'startContainer' is not allowed"),
        ('conflicts = ["a"]\nrequires = ["a"]', "conflicts: a is also required"),
        ('name = "Not good"', "name: 'Not good' is not allowed"),
        ('help = "a\\u0000b"', "help: contains a null byte"),
        ('conflicts = "a"', "conflicts: must be a list of strings"),
        ("[[devices]]\npath = '/etc/passwd'", r"devices\[0\].path: '/etc/passwd' is not allowed"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_mistakes_are_named_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=said) as caught:
        module.load(path)
    assert caught.value.brief.startswith(path)


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        module.load(write(tmp_path, 'a = 1\nhelp = 2\n[when]\nb = "x"'))
    assert len(caught.value.details.splitlines()) == 2


def test_the_schema_is_the_one_the_keys_give() -> None:
    with open(module_keys.SCHEMA_FILE, encoding="utf-8") as file:
        text = file.read()
    assert text == module_keys.schema_text()
    assert json.loads(text)["properties"]["mounts"]["items"]["required"] == ["source"]


def test_policy_is_checked_the_same_way(tmp_path: Path) -> None:
    path = write(tmp_path, 'on = ["mpich"]\nforbidden = ["/etc"]\nmissing_required = "warn"')
    found = policy.built(policy.load_table(path))
    assert (found.on, found.forbidden, found.missing_required) == (("mpich",), ("/etc",), "warn")
    with pytest.raises(UsageError, match=r"mpi_missmatch: unknown key \(did you mean mpi_mismatch\?\)"):
        policy.load_table(write(tmp_path, 'mpi_missmatch = "warn"'))


@pytest.mark.parametrize(
    ("target", "why"),
    [("/", "/"), ("/etc/passwd", "/etc/passwd"), ("/etc", "/etc/passwd"), ("/proc/sys", "/proc"), ("/etcetera", "")],
)
def test_forbidden_destinations(target: str, why: str) -> None:
    assert policy.Policy().forbids(target) == why


def test_trust(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    file = tmp_path / "dir/file"
    file.parent.mkdir(mode=0o755)
    file.write_text("x")
    file.chmod(0o644)
    assert policy.trust_of(policy.Policy()).doubt(str(file)) == ""
    file.chmod(0o664)
    assert "can be written by its group" in policy.trust_of(policy.Policy()).doubt(str(file))
    assert policy.trust_of(policy.Policy(group_writable=True)).doubt(str(file)) == ""
    file.chmod(0o644)
    file.parent.chmod(0o777)
    assert "can be written by everybody" in policy.trust_of(policy.Policy()).doubt(str(file))
    link = tmp_path / "link"
    link.symlink_to(file)
    assert str(file.parent) in policy.trust_of(policy.Policy()).doubt(str(link))
    file.parent.chmod(0o755)
    open_door = tmp_path / "open"
    open_door.mkdir()
    open_door.chmod(0o777)
    (open_door / "link").symlink_to(file)
    assert str(open_door) in policy.trust_of(policy.Policy()).doubt(str(open_door / "link"))
    with pytest.raises(UsageError, match=r"module .*link is not trusted"):
        require_trusted(policy.trust_of(policy.Policy()), str(open_door / "link"), "module")
