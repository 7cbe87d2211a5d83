"""What the command prints, and which checks `--only` runs."""

import json
from collections.abc import Iterator

import pytest
from squashmount.storage_conf.cli import main
from squashmount.storage_conf.doctor import command
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.probe import Probe
from squashmount.storage_conf.finding import Fact, Finding, error, warning

from squashmount.errors import UsageError


def broken(_node: Node) -> Iterator[Finding | Fact]:
    yield Fact("engine", "wire")
    yield warning("a little", "cause", "do", id="U08")
    yield error("much", "cause", "do", id="U07", evidence="line 3")


def other(_node: Node) -> Iterator[Finding]:
    yield error("also", "cause", "do", id="U42")


PROBES = (Probe(("U07", "U08"), "Ranges", broken), Probe(("U42",), "The map", other, explained_by=("U07",)))


@pytest.fixture(autouse=True)
def _probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "all_probes", lambda: PROBES)


def test_text_has_facts_then_the_worst_first_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 11
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "engine: wire"
    assert [line for line in lines if line.startswith(("error", "warning"))] == [
        "error U07: much",
        "warning U08: a little",
    ]
    assert "  seen: line 3" in lines
    assert lines[-2] == "not looked at because of U07: U42"
    assert lines[-1].endswith("2 checks: 1 error, 1 warning")


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 11
    said = json.loads(capsys.readouterr().out)
    assert said["format"] == 1
    assert [finding["id"] for finding in said["findings"]] == ["U08", "U07"]
    assert (said["checked"], said["skipped"]) == (["U07", "U08"], {"U42": "U07"})
    assert said["facts"] == {"engine": "wire"}


def test_only_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--only", "u08", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert ([one["id"] for one in said["findings"]], said["checked"]) == (["U08"], ["U08"])
    assert main(["doctor", "--only", "U08", "--strict"]) == 11
    capsys.readouterr()
    assert main(["doctor", "--only", "U08, U42", "--json"]) == 11
    said = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in said["findings"]] == ["U08", "U42"]


def test_an_unknown_check_names_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--only", "U7"]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "no check U7" in said
    assert "U07" in said
