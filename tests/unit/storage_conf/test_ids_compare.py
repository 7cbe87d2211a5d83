"""Nodes that differ are found, named and grouped; a node that says nothing sensible is not left out silently."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from squashmount.storage_conf import cli
from squashmount.storage_conf.ids.compare import folded

ONE: dict[str, Any] = {
    "format": 1,
    "subid": "sss",
    "plugin": True,
    "ranges": "a" * 64,
    "lines": 3,
    "passwd": "files sss",
    "versions": {"shadow": "4.17.4", "sssd": "2.12", "podman": "5.4.2"},
    "users": {"dave": {"uid": 20000, "subuid": [[2000000000, 65536]], "subgid": [[2000000000, 65536]]}},
}


def lines(many: int = 1000, **changes: dict[str, Any]) -> str:
    """Return fingerprints of n0000 …; `changes` are those of single nodes."""
    said = []
    for index in range(many):
        host = f"n{index:04}"
        one = copy.deepcopy(ONE) | {"host": host}
        one |= changes.get(host, {})
        said.append(json.dumps(one))
    return "\n".join(said) + "\n"


def compare(tmp_path: Path, text: str, *more: str) -> int:
    (tmp_path / "all").write_text(text)
    return cli.main(["ids", "compare", str(tmp_path / "all"), *more])


def test_a_thousand_nodes_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, lines(), "--nodes", "1000") == 0
    assert capsys.readouterr().out == "1000 nodes: n[0000-0999]\n1000 nodes in 1 group: nothing wrong\n"


OLD = {"dave": {"uid": 20000, "subuid": [[1, 65536]], "subgid": [[2000000000, 65536]]}}


@pytest.mark.parametrize(
    ("change", "name", "code"),
    [
        ({"subid": "files"}, "subid", 11),
        ({"plugin": False}, "plugin", 11),
        ({"ranges": "b" * 64}, "ranges", 0),
        ({"users": OLD}, "users.dave.subuid", 11),
        ({"versions": {"shadow": "4.13", "sssd": "2.12", "podman": "5.4.2"}}, "versions.shadow", 0),
        ({"versions": {"shadow": "4.17.4", "podman": "5.4.2"}}, "versions.sssd", 0),
        ({"passwd": "files"}, "passwd", 0),
    ],
)
def test_what_some_nodes_have_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], name: str, code: int
) -> None:
    text = lines(n0017=change, n0018=change, n0099=change)
    assert compare(tmp_path, text, "--json") == code
    said = json.loads(capsys.readouterr().out)
    assert [(one["id"], one["what"]) for one in said["findings"]] == [("A09", f"3 of 1000 nodes differ in {name}.")]
    assert "3 nodes: n[0017-0018,0099]" in said["findings"][0]["items"][1]
    assert said["groups"][1]["nodes"] == ["n0017", "n0018", "n0099"]
    assert list(said["groups"][1]["differs"]) == [name]
    assert compare(tmp_path, text, "--strict") == 11


def test_files_that_differ_are_an_error_where_they_count(tmp_path: Path) -> None:
    change = {"subid": "files", "ranges": "b" * 64}
    everyone = {f"n{index:04}": {"subid": "files"} for index in range(3)}
    assert compare(tmp_path, lines(3, **{**everyone, "n0001": change})) == 11


def test_a_silent_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, lines(7), "--nodes", "8") == 11
    assert "7 nodes said something, and 8 should have" in capsys.readouterr().out


def test_a_node_that_says_two_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = lines(2) + lines(2) + lines(1, n0000={"subid": "files"})
    assert compare(tmp_path, text) == 11
    assert "different things one after the other" in capsys.readouterr().out


def test_labels_of_srun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = "".join(f"{index}: {line}\n" for index, line in enumerate(lines(12).splitlines()))
    assert compare(tmp_path, labelled) == 0
    assert "12 nodes: n[0000-0011]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error",
        "{}",
        "[]",
        "7",
        '{"format": 2}',
        "[" * 60000,
        json.dumps(ONE),
        '{"format":1,"host":"\x1b[2J"}',
    ],
)
def test_what_is_no_fingerprint(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert compare(tmp_path, lines(2) + line + "\n") == 10
    said = capsys.readouterr()
    assert said.err.startswith("squashmount-conf: Line 3 of ")
    assert "\x1b" not in said.err
    assert not said.out


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert compare(tmp_path, "\n") == 2


def test_this_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ids", "fingerprint", "--user", "root"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line)["users"]["root"]["uid"] == 0
    assert compare(tmp_path, line) == 0


def test_the_order_of_lines_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for name, text in (("a", "x:1000000:65536\ny:2000000:65536\n"), ("b", "# y\ny:2000000:65536\nx:1000000:65536\n")):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc/subuid").write_text(text)
        assert cli.main(["ids", "fingerprint", "--root", str(tmp_path / name)]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert said[0]["lines"] == 2


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        (["n1", "n2", "n3", "n10"], "n[1-3,10]"),
        (["n09", "n10", "n11"], "n[09-11]"),
        (["n9", "n10"], "n[9,10]"),
        (["login", "n7", "r1n1", "r1n2"], "login,n7,r1n[1-2]"),
        (["n1.hpc", "n2.hpc"], "n1.hpc,n2.hpc"),
    ],
)
def test_names_of_nodes_are_folded(hosts: list[str], text: str) -> None:
    assert folded(reversed(hosts)) == text
