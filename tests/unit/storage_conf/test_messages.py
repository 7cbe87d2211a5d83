"""Known messages: each is recognised by its own words, in logs of any shape, and nothing else is."""

import ast
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from squashmount.migrate.cli import main as migrate_main
from squashmount.oci_hooks.cli import main as hooks_main
from squashmount.storage_conf.cli import main
from squashmount.storage_conf.doctor.command import all_probes
from squashmount.storage_conf.messages import ours
from squashmount.storage_conf.messages.catalogue import CATALOGUE, MESSAGES, markdown
from squashmount.storage_conf.messages.message import LINE_BYTES, Message, Spelling, explained

TOP = Path(__file__).resolve().parents[3]
NAME = re.compile(r"\{(\w+)\}")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.text[:60])
def test_a_message_is_recognised_by_its_example(message: Message) -> None:
    best = explained([message.example], MESSAGES)[0]
    assert best.message is message
    logged = 'time="2026-01-01T10:00:00Z" level=error msg=' + json.dumps(message.example)
    assert explained([logged], MESSAGES)[0].message is message
    assert "{" not in best.cause.replace("{{", "")
    assert set(NAME.findall(message.cause + message.fix)) <= set(NAME.findall(message.text))
    for text in (message.text, *message.also):
        assert not text.startswith("{"), "a message is found by its first literal piece"
        assert NAME.findall(message.text) or not NAME.findall(message.cause + message.fix)
    assert message.cause.endswith((".", "which.")), message.cause
    assert all(re.fullmatch(r"[UAS]\d\d", name) for name in message.ids)


def test_no_two_messages_are_the_same() -> None:
    texts = [text for message in MESSAGES for text in {message.text, *message.also}]
    assert len(texts) == len(set(texts))
    assert len(MESSAGES) >= 100
    assert all(CATALOGUE.values())


def test_the_document_is_made_of_the_catalogue() -> None:
    assert (TOP / "docs/errors.md").read_text() == markdown(), "squashmount-conf doctor --catalogue > docs/errors.md"


def said_in_the_sources() -> set[str]:
    """Return every text in the sources but the catalogue's, with {} for what is filled in."""
    said = set()
    files = [
        path
        for folder in ("squashmount", "migrate", "oci_hooks", "storage_conf")
        for path in (TOP / folder).rglob("*.py")
    ]
    for path in files:
        if path.parent.name != "messages":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    said.add(NAME.sub("{}", node.value))
                elif isinstance(node, ast.JoinedStr):
                    said.add(
                        "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                    )
    return said


def test_our_own_messages_are_those_of_the_sources() -> None:
    said = said_in_the_sources()
    for message in ours.MESSAGES:
        for text in (message.text, *message.also):
            assert any(NAME.sub("{}", text) in one for one in said), text


def test_the_doctor_has_the_checks_that_are_named() -> None:
    known = {name for probe in all_probes() for name in probe.ids}
    assert {name for message in MESSAGES for name in message.ids if name.startswith(("U", "S"))} <= known


PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "squashmount-conf": main,
    "migrate2scratch": migrate_main,
    "squashmount-hooks": hooks_main,
}
COMMAND = re.compile(rf"({'|'.join(PROGRAMS)}) ([a-z]+)([^;,]*)")


def test_what_is_to_be_typed_exists(capsys: pytest.CaptureFixture[str]) -> None:
    typed = {found for message in MESSAGES for found in COMMAND.findall(message.fix)}
    assert len(typed) > 10
    for program, command, rest in typed:
        try:
            code: object = PROGRAMS[program]([command, "--help"])
        except SystemExit as ended:
            code = ended.code
        assert code == 0, (program, command)
        said = capsys.readouterr().out
        assert all(option in said for option in re.findall(r"--[a-z-]+", rest)), (program, command, rest)


def test_values_are_filled_in_and_cannot_be_commands() -> None:
    line = 'cannot find UID/GID for user dave: no subuid ranges found for user "{}" in /etc/subuid'
    match = explained([line.format("dave")], MESSAGES)[0]
    assert "getsubids dave;" in match.fix
    match = explained([line.format("$(rm -rf ~)")], MESSAGES)[0]
    assert "rm -rf" not in match.fix
    assert "getsubids NAME;" in match.fix


def test_the_more_specific_message_hides_the_general_one_in_its_words() -> None:
    (only,) = explained(["newuidmap: write to uid_map failed: Operation not permitted"], MESSAGES)
    assert only.message.ids[0] == "U20"
    (only,) = explained(["Error: can't stat imageStore dir /s: stat /s: no such file or directory"], MESSAGES)
    assert only.values["store"] == "/s"
    assert only.fix.count("/s;") == 1


def test_each_message_of_a_log_is_told_once_the_most_specific_first() -> None:
    log = [
        "layer not known\n",
        "noise\n",
        "Error: layer not known\n",
        "Error fetching ranges\n",
        "cannot clone: Operation not permitted\n",
    ]
    matches = explained(log, MESSAGES)
    assert [match.line for match in matches] == [
        "cannot clone: Operation not permitted",
        "Error fetching ranges",
        "layer not known",
    ]


def test_a_line_that_the_terminal_broke_or_coloured() -> None:
    broken = ["read-only image store assigns the sa\n", "me name to multiple images\n"]
    assert explained(broken, MESSAGES)
    words = ["read-only image store assigns the\n", "    same name to multiple images\n"]
    assert explained(words, MESSAGES)
    assert explained(["\x1b[31mlayer\x1b[0m   not\tknown"], MESSAGES)


def test_other_text_is_not_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--explain", "everything is fine"]) == 1
    assert "squashmount-conf doctor looks for causes" in capsys.readouterr().err
    assert main(["doctor", "--explain", "", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["messages"] == []


def test_a_log_on_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    log = b"x" * 3 * LINE_BYTES + b"\n\xff\xfe bytes\x1b[2J\nError: layer not known\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(log)))
    assert main(["doctor", "--explain", "-"]) == 0
    out = capsys.readouterr().out
    assert "layer not known\n  cause: The list of images" in out
    assert "\x1b" not in out


def test_a_long_log_takes_no_memory_of_its_length() -> None:
    seen = 0

    def log() -> Iterator[str]:
        nonlocal seen
        for number in range(5000):
            seen += 1
            yield f"{'y' * 2000} {number}\n"
        yield "Error: layer not known"

    (only,) = explained(log(), MESSAGES)
    assert seen == 5000
    assert only.message.text == "layer not known"


def test_pieces_are_looked_for_in_order() -> None:
    spelling = Spelling.of("from {one} to {two}")
    assert spelling.find("to from a to b.") == (3, 13, {"one": "a", "two": "b"})
    assert spelling.find("to from a") is None
    assert spelling.weight == len("from  to ")


def test_the_document_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--catalogue"]) == 0
    assert capsys.readouterr().out == markdown()
