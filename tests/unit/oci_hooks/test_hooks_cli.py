"""The command line of squashmount-hooks, as far as it needs no Podman."""

import json
from pathlib import Path

import pytest
from squashmount.oci_hooks import cli


def test_check_says_what_is_wrong_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, site = tmp_path / "good.toml", tmp_path / "bad.toml", tmp_path / "hooks.toml"
    good.write_text('help = "fine"')
    bad.write_text("[when]\nalway = true")
    site.write_text('on = ["good"]')
    assert cli.main(["check", str(good), str(site)]) == 0
    assert cli.main(["check", str(bad), str(good)]) == 11
    said = capsys.readouterr()
    assert said.out.count("module good: fine") == 2
    assert f"{site}: policy: fine" in said.out
    assert said.err == f"{bad}: when.alway: unknown key (did you mean always?).\n"


def test_check_knows_the_planners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('planner = "mpihc"')
    two.write_text('planner = "zzz"')
    assert cli.main(["check", str(one), str(two)]) == 11
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"{one}: planner: 'mpihc' does not exist (did you mean mpich?)."
    assert second.startswith(f"{two}: planner: 'zzz' does not exist (one of amd, glibc, ")


def test_check_knows_the_modules_of_this_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, site = tmp_path / "one.toml", tmp_path / "two.toml", tmp_path / "site/hooks.toml"
    (tmp_path / "site/modules").mkdir(parents=True)
    (tmp_path / "site/modules/fabric.toml").write_text("")
    (tmp_path / "site/modules/broken.toml").write_text("[")
    one.write_text('requires = ["two", "xpmem", "fabric", "fabrik"]\nconflicts = ["zzz"]')
    two.write_text("")
    site.write_text(f'modules = ["{tmp_path}/site/modules"]\non = ["two"]\noff = ["broken"]\n')
    assert cli.main(["check", str(one), str(two), str(site)]) == 0
    there = "is neither among these files nor on this host"
    first = f"requires names the module fabrik, which {there} (did you mean fabric?)"
    assert capsys.readouterr().out.splitlines() == [
        f"{one}: module one: fine, but {first}, and conflicts names the module zzz, which {there}",
        f"{two}: module two: fine",
        f"{site}: policy: fine, but off names the module broken, which {there}",
    ]
    site.write_text(f'modules = ["{tmp_path}/site/modules"]\nshipped = false\n')
    one.write_text('requires = ["xpmem"]')
    cli.main(["check", "--policy", str(site), str(one)])
    assert f"requires names the module xpmem, which {there}" in capsys.readouterr().out


@pytest.mark.parametrize("option", [True, False])
def test_check_trusts_as_the_sites_policy_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, option: bool
) -> None:
    one, site = tmp_path / "one.toml", tmp_path / "hooks.toml"
    one.write_text("")
    site.write_text("")
    given = [str(one), *(["--policy", str(site)] if option else [str(site)])]
    one.chmod(0o664)
    site.chmod(0o664)

    def doubted(path: Path) -> bool:
        cli.main(["check", *given])
        lines = capsys.readouterr().out.splitlines()
        return any(line.startswith(f"{path}: ") and "can be written by its group" in line for line in lines)

    assert doubted(one)
    site.write_text("group_writable = true")
    assert not doubted(one)
    assert doubted(site) is not option, "the policy itself is not judged by what it says"


def test_check_says_what_a_planner_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tmp_path / "one.toml"
    for line, said in (("", True), ('image_env = ["PATH"]', False), ("image_env = []", False)):
        one.write_text(f'planner = "glibc"\n{line}\n')
        assert cli.main(["check", str(one)]) == 0
        remark = "without image_env it is told nothing of the container's LD_LIBRARY_PATH, PATH"
        assert (remark in capsys.readouterr().out) is said


def test_check_without_a_file_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 2
    assert "No file is named" in capsys.readouterr().err


def test_check_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--schema"]) == 0
    assert "mounts" in json.loads(capsys.readouterr().out)["properties"]
