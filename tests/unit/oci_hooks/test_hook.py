"""The hook program itself, as Podman starts it: bytes in, bytes or a reason out."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hook_site import HOOK, HOOK_PATH, ID, Site
from squashmount.oci_hooks import catalogue, cli, hook, log
from squashmount.oci_hooks.hook import container_id
from test_architecture import loaded_by

from squashmount.errors import AmbiguousImageError, ImageNotFoundError


@pytest.fixture
def site(tmp_path: Path) -> Site:
    tmp_path.chmod(0o755)
    return Site(tmp_path)


def test_what_came_goes_out_when_nothing_applies(site: Site) -> None:
    site.module("a", '[when]\nannotation = ["squashmount.a=yes"]')
    data = b'  {"mounts" :[ ], "weird": 1e2 }\n'
    for _ in range(2):  # the second time from the compiled modules
        done = site.run(data)
        assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")
    with pytest.raises(ImageNotFoundError, match="no log"):
        site.log()


def test_a_module_is_applied_and_logged(site: Site) -> None:
    site.module("a", f'[[mounts]]\nsource = "{site.top}/lib.so"\ntarget = "/usr/lib.so"\n[env]\npass = ["JOB"]')
    done = site.run(site.config(a="on"), JOB="7")
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)
    assert made["mounts"][1]["destination"] == "/usr/lib.so"
    assert made["process"]["env"] == ["JOB=7"]
    text = site.log()
    assert "done: a: annotation squashmount.a=on" in text
    assert f"done: a: '{site.top}/lib.so' is mounted on '/usr/lib.so'" in text
    assert made["annotations"]["squashmount.plan"] in text
    again = site.run(made, JOB="7")
    assert json.loads(again.stdout) == made


def test_a_missing_file_stops_with_one_sentence(site: Site) -> None:
    site.module("a", '[when]\nalways = true\n[[mounts]]\nsource = "/no/such/lib.so"')
    done = site.run(site.config())
    assert (done.returncode, done.stdout) == (1, b"")
    first = done.stderr.decode().splitlines()[0]
    assert first == "squashmount-hook: The container is not started: a: /no/such/lib.so is not on this host."
    assert "refused: The container is not started: a: /no/such/lib.so" in site.log()
    site.rules(missing_required="warn")
    done = site.run(site.config())
    assert done.returncode == 0
    assert "warning: a: /no/such/lib.so is not on this host" in site.log()


def test_a_conflict_with_the_user_stops(site: Site) -> None:
    site.module("a", f'[when]\nalways = true\n[[mounts]]\nsource = "{site.top}/lib.so"\ntarget = "/usr/lib.so"')
    config = site.config()
    config["mounts"].append({"destination": "/usr/lib.so", "source": "/mine"})
    done = site.run(config)
    assert done.returncode == 1
    assert b"the container has '/mine' there" in done.stderr


@pytest.mark.parametrize("data", [b"", b"[", b"{}x", b'"text"', b"null", b'{"root": {"path": "relative"}}'])
def test_something_else_than_a_configuration_is_refused(site: Site, data: bytes) -> None:
    site.module("a", "[when]\nalways = true")
    done = site.run(data)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"squashmount-hook: The container's configuration ")


def test_wrong_use_is_said(site: Site) -> None:
    for arguments in ([], ["apply", "--policy"], ["apply", "x", "y"], ["none"]):
        done = subprocess.run(
            [HOOK, *arguments], check=False, input=b"{}", capture_output=True, timeout=30, env=site.environ()
        )
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"Expected" in done.stderr


def test_a_broken_or_untrusted_module_stops_every_container(site: Site) -> None:
    site.module("a", "[when]\nalway = true")
    done = site.run(site.config())
    assert done.returncode == 2
    assert b"a.toml: when.alway: unknown key (did you mean always?)" in done.stderr
    site.module("a", "")
    assert site.run(site.config()).returncode == 0
    (site.modules / "a.toml").chmod(0o666)
    done = site.run(site.config())
    assert done.returncode == 2
    assert b"is not trusted" in done.stderr
    (site.modules / "a.toml").chmod(0o644)
    assert site.run(site.config()).returncode == 0
    site.modules.chmod(0o777)
    assert b"is not trusted" in site.run(site.config()).stderr


def test_a_changed_module_counts_at_once(site: Site) -> None:
    site.module("a", '[when]\nalways = true\n[env]\nset = { A = "1" }')
    assert json.loads(site.run(site.config()).stdout)["process"]["env"] == ["A=1"]
    compiled = site.state / "squashmount" / catalogue.COMPILED
    before = compiled.stat().st_ino
    assert json.loads(site.run(site.config()).stdout)["process"]["env"] == ["A=1"]
    assert compiled.stat().st_ino == before
    site.module("a", '[when]\nalways = true\n[env]\nset = { A = "2" }')
    assert json.loads(site.run(site.config()).stdout)["process"]["env"] == ["A=2"]
    site.module("b", '[when]\nalways = true\n[env]\nset = { B = "1" }')
    assert json.loads(site.run(site.config()).stdout)["process"]["env"] == ["A=2", "B=1"]
    compiled.write_text("damaged")
    assert json.loads(site.run(site.config()).stdout)["process"]["env"] == ["A=2", "B=1"]


def test_users_have_modules_of_their_own_where_the_site_says_so(site: Site) -> None:
    own = site.top / ".config/squashmount/modules.d"
    own.mkdir(parents=True)
    (own / "mine.toml").write_text('[env]\nset = { MINE = "1" }')
    assert b"No module knows" in site.run(site.config(mine="on")).stderr
    site.rules(user_modules="add")
    assert json.loads(site.run(site.config(mine="on")).stdout)["process"]["env"] == ["MINE=1"]
    site.module("mine", '[env]\nset = { MINE = "site" }')
    assert b"has the name of the site's" in site.run(site.config(mine="on")).stderr
    site.rules(user_modules="override")
    assert json.loads(site.run(site.config(mine="on")).stdout)["process"]["env"] == ["MINE=1"]


def test_logs_are_bounded_and_say_one_thing_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT", 8)
    for number in range(20):
        log.write(str(tmp_path), f"{number:064x}", ["two\nlines\x1b[1m"])
    assert len(os.listdir(tmp_path / "hooks")) <= 9
    text = log.read(str(tmp_path), f"{19:064x}")
    assert text.endswith(" two\\nlines\\x1b[1m\n")
    assert text.count("\n") == 1
    with pytest.raises(AmbiguousImageError):
        log.read(str(tmp_path), "0000")


def test_the_container_is_found_in_podmans_paths() -> None:
    assert container_id({"mounts": [{"source": "tmpfs"}, {"source": f"/x/overlay-containers/{ID}/userdata/h"}]}) == ID
    assert container_id({"mounts": [{"source": "/x/overlay-containers/short/userdata"}]}) == ""
    assert container_id({"mounts": None}) == ""


def test_install_list_remove(site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(site.top))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    site.module("a", 'help = "For tests."\n[when]\nannotation = ["squashmount.mpi=auto"]')
    policy = ["--policy", str(site.policy)]
    assert cli.main(["install", *policy]) == 0
    directory = site.top / ".config/containers/oci/hooks.d"
    assert f'hooks_dir = ["/usr/share/containers/oci/hooks.d", "{directory}"]' in capsys.readouterr().out
    value = json.loads((directory / "squashmount.json").read_text())
    assert value["hook"] == {"path": HOOK, "args": [HOOK, "apply", *policy]}
    assert (value["version"], value["stages"], value["when"]) == ("1.0.0", ["precreate"], {"always": True})
    assert cli.main(["list", *policy]) == 0
    said = capsys.readouterr().out
    assert "For tests." in said
    assert "on: squashmount.a=on, squashmount.mpi=auto" in said
    assert f"installed: {directory}/squashmount.json\n" in said
    assert cli.main(["list", "--json", *policy]) == 0
    assert json.loads(capsys.readouterr().out)["modules"][0]["name"] == "a"
    assert cli.main(["remove"]) == 0
    assert not (directory / "squashmount.json").exists()
    assert cli.main(["remove"]) == 0
    assert "was not installed" in capsys.readouterr().out
    assert cli.main(["install", "--program", "/none", *policy]) == 2


def test_plan_and_test_of_a_root_file_system(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    text = f'[[mounts]]\nsource = "{site.top}/lib.so"\ntarget = "/usr/lib.so"\n'
    site.module("a", text + '[[mounts]]\nsource = "/none"\noptional = true')
    common = ["--policy", str(site.policy), "--annotation", "squashmount.a=on"]
    assert cli.main(["plan", "--rootfs", str(site.root), *common]) == 0
    said = capsys.readouterr().out
    assert f"because: a: '{site.top}/lib.so' is mounted on '/usr/lib.so'" in said
    assert "not done: a: /none is not on this host" in said
    assert cli.main(["plan", "--rootfs", str(site.root), "--json", *common]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (len(table["hash"]), table["modules"]) == (64, ["a"])
    assert cli.main(["test", str(site.root), *common]) == 0
    assert f"mount: {site.top}/lib.so on /usr/lib.so (rbind,ro,nosuid,nodev,rprivate)" in capsys.readouterr().out
    (site.root / "usr/lib.so").symlink_to("/proc/1/environ")
    assert cli.main(["plan", "--rootfs", str(site.root), *common]) == 11
    assert cli.main(["test", str(site.root), *common]) == 11
    said = capsys.readouterr()
    assert "would not start: a: the destination '/usr/lib.so' (leads to '/proc/1/environ') is forbidden" in said.out
    assert "(leads to '/proc/1/environ') is forbidden" in said.err
    assert cli.main(["plan", *common]) == 2


def test_test_runs_ldconfig_and_says_what_it_does_not_run(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (site.root / "etc").mkdir()
    site.module("a", 'ldconfig = true\n[[hooks]]\nstage = "poststop"\npath = "/bin/true"\nargs = ["true", "later"]')
    command = ["test", str(site.root), "--policy", str(site.policy), "--annotation", "squashmount.a=on"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "squashmount-hook ldconfig (was run, without the mounts)" in said
    assert "hook: poststop: true later (was not run, which takes a container)" in said
    cache = site.root / "etc/ld.so.cache"
    assert cache.read_bytes().startswith(b"glibc-ld.so.cache")
    cache.with_name("ld.so.cache~").mkdir()
    assert cli.main(command) == 11
    assert "The container's ld.so.cache cannot be made." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "sentence", "module"),
    [
        ("a: /x is not on this host", "a: /x is not on this host.", "a"),
        ("The modules a and b cannot be on together.", "The modules a and b cannot be on together.", "a"),
        ("The module a requires the module c, which is no module.", "", "a"),
        ("No module knows it; did you mean squashmount.mpi?", "No module knows it; did you mean squashmount.mpi?", ""),
        ("'/x' cannot be mounted: there is '/y'", "'/x' cannot be mounted: there is '/y'.", ""),
    ],
)
def test_a_refusal_names_the_module_that_can_be_switched_off(reason: str, sentence: str, module: str) -> None:
    brief, *_, hint = str(hook.refusal([reason, "more"], ("a", "b"))).split("\n")
    assert brief == f"The container is not started: {sentence or reason}"
    off = f"; --annotation squashmount.{module}=off does without" if module else ""
    assert hint == f"  hint: squashmount-hooks plan says more{off}"


def test_the_hook_is_light_when_nothing_applies(site: Site) -> None:
    site.module("a", "")
    site.run(b"{}")
    code = f"import io, os; os.environ.update({site.environ()!r}); "
    code += "sys.stdin = io.TextIOWrapper(io.BytesIO(b'{}')); sys.stdout = io.TextIOWrapper(io.BytesIO()); "
    # the folder as it is installed, without the finder of an editable install
    code += "import squashmount, oci_hooks; sys.modules['squashmount.oci_hooks'] = oci_hooks; "
    code += "from squashmount.oci_hooks.hook import main; "
    code += f"code = main(['apply', '--policy', {str(site.policy)!r}]); sys.stdout = sys.__stdout__; assert code == 0"
    assert loaded_by(code) & HOOK_PATH == set()
