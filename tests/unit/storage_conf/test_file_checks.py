"""`check FILE`: each mistake is named with its line, and a file without one passes."""

import json
import os
from pathlib import Path

import pytest
from squashmount.storage_conf.cli import main
from squashmount.storage_conf.facts import read_conf
from squashmount.storage_conf.file_checks import check_file
from squashmount.storage_conf.finding import Severity
from squashmount.storage_conf.podman import Machine
from squashmount.storage_conf.trusted import hooks_findings

from squashmount.errors import UsageError
from squashmount.trust import Trust


def machine(podman: int = 5, **environ: str) -> Machine:
    return Machine({"USER": "dave", "HOME": "/home/dave", **environ}, 1001, podman)


def found(path: Path, text: str, podman: int = 5, **environ: str) -> list[tuple[int, str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    checked = check_file(str(path), machine(podman, **environ))
    said = [
        (line, finding.what.split(": ", 1)[1]) for line, finding in checked.findings if finding.severity.value != "info"
    ]
    # where the tests' temporary directory is not root's alone
    return [(line, what) for line, what in said if "is not trusted" not in what]


STORAGE = """\
# ours
[storage]
driver = "overlay"
graphroot = "/tmp/c-$UID/g"
runroot = "/tmp/c-$UID/r"
"""


def test_good_files_pass(tmp_path: Path) -> None:
    assert found(tmp_path / "storage.conf", STORAGE) == []
    good = '[containers]\ncgroupns = "host"\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logfile_max_size = "1m"\n'
    assert found(tmp_path / "containers.conf", good) == []
    assert found(tmp_path / "site.toml", 'linger = 3\n[scratch]\ngraphroot = "/tmp/$UID"\n') == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[storage]\ndriver = \n", 2, "no TOML"),
        ('[storage]\ndriver = "vfs"\n', 2, "the driver is vfs"),
        ('[storage.options.overlay]\nmount_program = "/usr/bin/env"\n', 1, "no driver is set"),
        (STORAGE + "graphrot = 1\n", 6, "unknown key storage.graphrot"),
        (STORAGE + '[storage.options]\ngraphroot = "/x"\n', 7, "graphroot does not belong into [storage.options]"),
        (STORAGE + '[storage.options]\nrunroot = "/x"\n', 7, "runroot does not belong into [storage.options]"),
        (STORAGE + "[storage.options.overlay]\nignore_chown_errors = true\n", 7, "must be a string in quotes"),
        (STORAGE + '[storage.options.overlay]\nignore_chown_errors = "yes"\n', 7, "ignore_chown_errors is 'yes'"),
        (STORAGE + '[storage.options]\nadditionalimagestores = "/s"\n', 7, "must be a list"),
        (STORAGE + '[storage.options]\nadditionalimagestores = ["/nowhere"]\n', 7, "the store /nowhere does not exist"),
        (STORAGE + '[storage.options]\nadditionalimagestores = ["a"]\n', 7, "the store a is no absolute path"),
        (
            STORAGE + '[storage.options]\nadditionalimagestores = [\n"/usr",\n"/usr"]\n',
            7,
            "the store /usr is there twice",
        ),
        (
            STORAGE + '[storage.options.overlay]\nmount_program = "/nowhere"\n',
            7,
            "mount_program /nowhere cannot be executed",
        ),
        (STORAGE.replace("$UID/g", "${UID}/g"), 4, "graphroot /tmp/c-${UID}/g has braces"),
        (STORAGE.replace("/tmp/c-$UID/g", "g"), 4, "graphroot g is no absolute path"),
        (STORAGE.replace("$UID/r", "x" * 60), 5, "is too long"),
        (STORAGE.replace("/tmp/c-$UID/g", "/proc/$UID/$SLURM_JOB_ID"), 4, "needs a job"),
        (
            STORAGE + 'rootless_storage_path = "/tmp/all"\n',
            6,
            "rootless_storage_path /tmp/all is the same for every user",
        ),
    ],
)
def test_mistakes_in_storage_conf(tmp_path: Path, text: str, line: int, says: str) -> None:
    said = found(tmp_path / "storage.conf", text)
    assert [(where, what) for where, what in said if where == line and says in what], said


def test_what_podman_6_changes(tmp_path: Path) -> None:
    old = STORAGE + 'rootless_storage_path = "/tmp/$UID"\n'
    assert found(tmp_path / "storage.conf", old) == []
    assert found(tmp_path / "storage.conf", old, 6) == [(6, "rootless_storage_path is ignored: graphroot is set too")]
    append = STORAGE + f'[storage.options]\nadditionalimagestores = ["{store(tmp_path)}", {{append = true}}]\n'
    assert found(tmp_path / "storage.conf", append, 6) == []
    assert found(tmp_path / "storage.conf", append) == [(7, "additionalimagestores holds {'append': True}")]
    wrap = tmp_path / "fuse-overlayfs-wrap"
    wrap.write_text("#!/bin/sh\n")
    wrap.chmod(0o755)
    text = STORAGE + f'[storage.options.overlay]\nmount_program = "{wrap}"\n'
    assert found(tmp_path / "storage.conf", text) == []
    assert "does not know Podman 6" in found(tmp_path / "storage.conf", text, 6)[0][1]
    drop_in = tmp_path / "storage.rootless.conf.d/50.conf"
    assert "same for every user" in found(drop_in, '[storage]\ndriver = "overlay"\ngraphroot = "/x"\n', 6)[0][1]


def test_a_file_named_by_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "storage.conf"
    said = found(path, STORAGE, CONTAINERS_STORAGE_CONF=str(path))
    assert said == [(4, "graphroot /tmp/c-$UID/g is not used")]


@pytest.mark.parametrize(
    ("text", "line", "says", "podman"),
    [
        ('[containers]\ncgroup_manager = "cgroupfs"\n', 2, "cgroup_manager does not belong into [containers]", 5),
        ('[engine]\ncgroupns = "host"\n', 2, "cgroupns does not belong into [engine]", 5),
        ('[engine]\n\ncgroup_manger = "cgroupfs"\n', 3, "unknown key engine.cgroup_manger", 5),
        ('[engine]\ncgroup_manager = "cgroups"\n', 2, "cgroup_manager = 'cgroups' is not allowed", 5),
        ('[engine]\nhooks_dir = "/x"\n', 2, "engine.hooks_dir must be a list", 5),
        ('[engine]\nhooks_dir = ["/nowhere"]\n', 2, "hooks_dir /nowhere does not exist", 5),
        ('[containers]\npids_limit = "0"\n', 2, "containers.pids_limit must be a number", 5),
        ('[network]\nnetwork_backend = "cni"\n', 2, "network_backend = 'cni' does not exist in Podman 5", 5),
        ('[network]\ndefault_rootless_network_cmd = "slirp4netns"\n', 2, "does not exist in Podman 6", 6),
        ('[containers]\nnetns = "slirp4netns:mtu=1500"\n', 2, "does not exist in Podman 6", 6),
        ("[engines]\n", 1, "unknown key engines", 5),
    ],
)
def test_mistakes_in_containers_conf(tmp_path: Path, text: str, line: int, says: str, podman: int) -> None:
    said = found(tmp_path / "containers.conf", text, podman)
    assert [(where, what) for where, what in said if where == line and says in what], said


def test_pull_policies_that_podman_takes(tmp_path: Path) -> None:
    for word in ("IfNotPresent", "Always", "missing"):
        assert found(tmp_path / "containers.conf", f'[engine]\npull_policy = "{word}"\n') == []


def test_a_variable_that_is_empty(tmp_path: Path) -> None:
    text = '[storage]\ndriver = "overlay"\n\ngraphroot = "/local/$USERNAME/g"\n'
    assert found(tmp_path / "storage.conf", text, USERNAME="dave") == []
    ((line, said),) = found(tmp_path / "storage.conf", text)
    assert (line, "the variable USERNAME is empty here" in said) == (4, True)


def test_systemd_inside_a_job(tmp_path: Path) -> None:
    text = '[engine]\ncgroup_manager = "systemd"\n'
    assert found(tmp_path / "containers.conf", text) == []
    assert found(tmp_path / "containers.conf", text, SLURM_JOB_ID="1") == [
        (2, "cgroup_manager is systemd inside a job")
    ]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("enginee = 1\n", 1, "unknown key enginee"),
        ('\nengine = "fast"\n', 2, "engine = 'fast' is not allowed"),
        ('stores = "/s"\n', 1, "stores must be a list"),
        ("[scratch]\ngraphrot = 1\n", 2, "unknown key scratch.graphrot"),
        ('[scratch]\ngraphroot = "/local"\n', 2, "graphroot /local is the same for every user"),
        ('[scratch]\ngraphroot = "/l/$SLURM_JOB_ID"\n', 2, "is the same for every user"),
        ('[scratch]\nrunroot = "/l/${UID}"\n', 2, "runroot /l/${UID} has braces"),
        ('forbidden = ["/home"]\n[scratch]\ngraphroot = "/home/$USER/g"\n', 3, "is on /home, which is forbidden"),
        ("[[stores]]\nall = true\n", 1, "a store has no absolute path"),
        ('[[stores]]\npath = "/usr"\n', 1, "nobody sees the store /usr"),
        ('[[stores]]\npath = "/usr"\nall = true\n[[stores]]\npath = "/usr"\nall = true\n', 4, "is there twice"),
        ('[[stores]]\npath = "/nowhere"\nall = true\n', 1, "the store /nowhere does not exist here"),
        ('[[stores]]\npath = "/usr"\ngroups = ["domain users"]\n', 3, "cannot be compared at login"),
        ('trusted_owners = ["root"]\n', 1, "trusted_owners must be a list of uids"),
        ('mount_program = "squashmount"\n', 1, "no absolute path"),
        ('[modules."a/b".containers]\n', 1, "cannot be a file"),
        ("[modules.hpc.containers]\nipcns = 1\n", 2, "containers.ipcns must be a string"),
        ('[modules.hpc.engine]\ncgroupns = "host"\n', 2, "does not belong into [engine]"),
    ],
)
def test_mistakes_in_site_toml(tmp_path: Path, text: str, line: int, says: str) -> None:
    said = found(tmp_path / "site.toml", text)
    assert [(where, what) for where, what in said if where == line and says in what], said


@pytest.mark.parametrize(
    ("raw", "line"), [(b'[storage]\ndriver = "\xff"\n', 2), (b"a = " + b"[" * 3000 + b"]" * 3000, 0)]
)
@pytest.mark.parametrize("name", ["storage.conf", "site.toml"])
def test_what_no_parser_takes_is_a_finding(tmp_path: Path, name: str, raw: bytes, line: int) -> None:
    (tmp_path / name).write_bytes(raw)
    ((where, finding),) = check_file(str(tmp_path / name), machine()).findings
    assert (where, "the file is no TOML" in finding.what) == (line, True)
    assert ("Podman" in finding.why) == (name == "storage.conf")


def test_a_users_settings_are_not_the_sites(tmp_path: Path) -> None:
    path = tmp_path / "squashmount.toml"
    path.write_text('engine = "wire"\n')
    path.chmod(0o666)
    assert check_file(str(path), machine()).findings == ()
    assert found(path, "engin = 1\n[scratch]\n") == [(1, "unknown key engin"), (2, "unknown key scratch")]


def test_near_misses_are_named(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("prefetch-mib = 1\n")
    (fix,) = [finding.fix for _, finding in check_file(str(path), machine()).findings if "unknown" in finding.what]
    assert fix == "write prefetch_mib"


def store(folder: Path, images: str = "[]") -> Path:
    """Make a store of no layers."""
    top = folder / "store"
    for name, text in (("images", images), ("layers", "[]")):
        (top / f"overlay-{name}").mkdir(parents=True)
        (top / f"overlay-{name}/{name}.json").write_text(text)
        (top / f"overlay-{name}/{name}.lock").touch()
    return top


@pytest.mark.parametrize(
    ("images", "what"),
    [
        ('[{"id": ', "is damaged"),
        (json.dumps([{"id": f"{number:064x}", "names": ["localhost/a:1"]} for number in (1, 2)]), "localhost/a:1"),
    ],
)
def test_what_is_in_a_store_counts_where_it_is_named(tmp_path: Path, images: str, what: str) -> None:
    named = STORAGE + f'[storage.options]\nadditionalimagestores = ["{store(tmp_path, images)}"]\n'
    ((line, said),) = found(tmp_path / "storage.conf", named, 4)
    assert line == len(named.splitlines())
    assert what in said


_HOOK = json.dumps({"version": "1.0.0", "hook": {"path": "/bin/true"}, "stages": ["precreate"]})


def test_hooks_that_others_can_change(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.d"
    hooks.mkdir()
    (hooks / "a.json").write_text(_HOOK)
    if list(hooks_findings(str(hooks), Trust((os.getuid(),)))):
        pytest.skip("a directory above the temporary one is not trusted")
    (hooks / "a.json").chmod(0o666)
    (finding,) = hooks_findings(str(hooks), Trust((os.getuid(),)))
    assert "can be written by everybody" in finding.why
    (hooks / "a.json").chmod(0o644)
    program = tmp_path / "hook"
    program.touch(mode=0o777)
    program.chmod(0o777)
    (hooks / "a.json").write_text(json.dumps({"hook": {"path": str(program)}}))
    (finding,) = hooks_findings(str(hooks), Trust((os.getuid(),)))
    assert finding.what == f"{program} is not trusted"
    (hooks / "a.json").write_text(_HOOK)
    (hooks / "a.json").chmod(0o666)
    (hooks / "link.json").symlink_to(hooks / "a.json")
    assert len(list(hooks_findings(str(hooks), Trust((os.getuid(),))))) == 2


@pytest.mark.parametrize(
    ("text", "severity", "what"),
    [
        ("", Severity.ERROR, "is no hook"),
        ("{}", Severity.ERROR, "is no hook"),
        ('{"hook": []}', Severity.ERROR, "is no hook"),
        (_HOOK.replace("precreate", "prestart"), Severity.WARNING, "is for the stage prestart"),
    ],
)
def test_what_podman_refuses_as_a_hook_or_runs_too_late(
    tmp_path: Path, text: str, severity: Severity, what: str
) -> None:
    (tmp_path / "a.json").write_text(text)
    found = [one for one in hooks_findings(str(tmp_path), Trust((os.getuid(),))) if "trusted" not in one.what]
    assert [(one.severity, one.what) for one in found] == [(severity, f"{tmp_path}/a.json {what}")]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "storage.conf"
    path.write_text('[storage]\ndriver = "vfs"\n')
    assert main(["check", "--podman", "5", str(path)]) == 11
    out = capsys.readouterr().out
    assert f"error: {path}:2: the driver is vfs" in out
    assert f"Podman 5, {path} (storage.conf): 1 error" in out
    assert main(["check", "--podman", "5", "--json", str(path)]) == 11
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert (file["kind"], file["findings"][0]["line"]) == ("storage.conf", 2)
    assert main(["check", "--podman", "5", "/nowhere/storage.conf"]) == 2
    with pytest.raises(UsageError):
        check_file(str(tmp_path), machine())


def test_a_fifo_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "storage.conf"
    os.mkfifo(path)
    assert read_conf(str(path)).problem == "it is not a regular file"
    with pytest.raises(UsageError, match="cannot be read") as refused:
        check_file(str(path), machine())
    assert "not a regular file" in refused.value.details
    assert read_conf(os.devnull).problem == "", "CONTAINERS_CONF=/dev/null is a usual way to have none"
