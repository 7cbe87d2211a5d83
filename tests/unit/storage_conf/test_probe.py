"""Probes of the doctor run in children: none can hang it, crash it, or print through it."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.probe import NotLookedAtError, Probe, examine, run_all
from squashmount.storage_conf.finding import Fact, Finding, Severity, error, info

from squashmount.errors import HostError

NODE = Node(environ={}, uid=os.getuid(), gid=os.getgid())


def seen(number: int) -> Probe:
    def run(_node: Node) -> Iterator[Finding]:
        time.sleep(0.05 * (3 - number))
        os.write(1, b"noise of a plugin\n")
        yield error("what", "why", "fix", id=f"U{number}", evidence="line 1\nline \udcff2")

    return Probe((f"U{number}",), "The probe", run)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_findings_come_in_the_order_of_the_probes_whoever_answers_first() -> None:
    found = run_all([seen(number) for number in range(3)], NODE, at_once=2)
    assert [finding.id for finding in found] == ["U0", "U1", "U2"]
    assert found[0] == error("what", "why", "fix", id="U0", evidence="line 1\nline \udcff2")


def test_one_that_hangs_is_killed_with_all_it_started_and_named(tmp_path: Path) -> None:
    def run(_node: Node) -> Iterator[Finding]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if child:
            (tmp_path / "pids").write_text(f"{os.getpid()} {child}")
        time.sleep(60)
        yield info("late", "late", "late")

    start = time.monotonic()
    hangs = Probe(("U42", "U46"), "The id map", run, seconds=0.5)
    found = run_all([hangs, seen(1)], NODE)
    assert time.monotonic() - start < 10  # 60 where it is waited for
    assert [(finding.id, finding.severity) for finding in found] == [("U42", Severity.ERROR), ("U1", Severity.ERROR)]
    assert "did not answer in 0.5 s" in found[0].what
    assert "--only U42,U46" in found[0].fix
    time.sleep(0.1)
    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_one_that_is_too_late_or_interrupted_removes_what_it_made(tmp_path: Path) -> None:
    made = tmp_path / "made"

    def run(_node: Node) -> Iterator[Finding]:
        made.mkdir()
        try:
            time.sleep(60)
        finally:
            made.rmdir()
        yield info("late", "late", "late")

    def interrupts(_node: Node) -> Iterator[Finding]:
        while not made.exists():
            time.sleep(0.01)
        time.sleep(0.2)  # what is raised in the hooks of fork(2), in which the parent may be still, is lost
        os.kill(os.getppid(), signal.SIGINT)
        yield info("", "", "")

    assert "did not answer" in run_all([Probe(("U15",), "The map", run, seconds=0.5)], NODE)[0].what
    assert not made.exists()
    with pytest.raises(KeyboardInterrupt):
        run_all([Probe(("U15",), "The map", run), Probe(("U1",), "Ctrl-C", interrupts)], NODE)
    assert not made.exists()


def test_one_that_dies_or_has_a_bug_is_told_and_the_others_go_on() -> None:
    def dies(_node: Node) -> Iterator[Finding]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield info("", "", "")

    def wrong(_node: Node) -> Iterator[Finding]:
        raise ZeroDivisionError
        yield

    outcome = examine([Probe(("U1",), "The first", dies), Probe(("U2", "U3"), "The second", wrong), seen(1)], NODE)
    found = outcome.findings
    assert "died without an answer" in found[0].what
    assert (found[1].id, found[1].severity) == ("U2", Severity.ERROR)  # nobody has shown that the node is healthy
    assert outcome.skipped == {"U2": "U2", "U3": "U2"}
    assert "ZeroDivisionError" in found[1].evidence
    assert found[2].id == "U1"


def test_one_that_cannot_look_says_because_of_what() -> None:
    def blind(_node: Node) -> Iterator[Finding]:
        yield info("half", "why", "fix", id="U42")
        raise NotLookedAtError("U31")

    outcome = examine([Probe(("U42", "U43"), "The map", blind), after("S05", "U42"), after("U50")], NODE)
    assert [one.id for one in outcome.findings] == ["U50"]
    assert outcome.skipped == {"U42": "U31", "U43": "U31", "S05": "U31"}


def test_an_endless_answer_is_cut_off() -> None:
    def run(_node: Node) -> Iterator[Finding]:
        yield info("x" * (3 << 20), "why", "fix")

    assert "died without an answer" in run_all([Probe(("U1",), "The probe", run)], NODE)[0].what


def test_files_of_the_node_are_read_below_its_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/subuid").write_bytes(b"a:1:2\xff\n")
    node = Node(environ={"USER": "else"}, uid=os.getuid(), root=str(tmp_path))
    assert node.text("/etc/subuid") == "a:1:2\udcff\n"
    assert node.bytes("/etc/nsswitch.conf") is None
    assert node.name == "else"


def test_facts_come_beside_the_findings_in_the_order_of_the_probes() -> None:
    def slow(_node: Node) -> Iterator[Finding | Fact]:
        time.sleep(0.1)
        yield Fact("first", "\udcff")
        yield info("what", "why", "fix", id="U1")

    def fast(_node: Node) -> Iterator[Fact]:
        yield Fact("second", "2")

    facts: dict[str, str] = {}
    found = run_all([Probe(("U1",), "The first", slow), Probe(("U2",), "The second", fast)], NODE, facts=facts)
    assert [finding.id for finding in found] == ["U1"]
    assert list(facts.items()) == [("first", "\udcff"), ("second", "2")]


def after(name: str, *causes: str) -> Probe:
    def run(_node: Node) -> Iterator[Finding]:
        yield error("what", "why", "fix", id=name)

    return Probe((name,), "The probe", run, explained_by=causes)


def said(severity: Severity, name: str = "U7", **options: tuple[str, ...]) -> Probe:
    def run(_node: Node) -> Iterator[Finding]:
        time.sleep(0.05)
        yield Finding(severity, "what", "why", "fix", name)

    return Probe(options.get("ids", (name,)), "The cause", run)


def test_what_follows_from_an_error_is_skipped_and_so_is_what_follows_from_that() -> None:
    outcome = examine([after("U43", "U42"), after("U42", "U7", "U8"), said(Severity.ERROR), after("U50")], NODE)
    assert [finding.id for finding in outcome.findings] == ["U7", "U50"]
    assert outcome.skipped == {"U42": "U7", "U43": "U7"}


def test_a_warning_explains_nothing() -> None:
    outcome = examine([after("U42", "U7"), said(Severity.WARNING)], NODE)
    assert [finding.id for finding in outcome.findings] == ["U42", "U7"]
    assert outcome.skipped == {}


def test_what_was_not_chosen_explains_nothing() -> None:
    assert [one.id for one in run_all([after("U42", "U7")], NODE)] == ["U42"]
    hidden = said(Severity.ERROR, ids=("U8",))  # finds U7, which nobody is told
    assert examine([hidden, after("U42", "U7", "U8")], NODE).skipped == {}


def test_probes_that_wait_for_each_other_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="U42, U43"):
        examine([after("U42", "U43"), after("U43", "U42"), said(Severity.INFO)], NODE)


def test_a_node_without_room_for_a_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, "fork")

    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(HostError, match="No process can be started: Resource temporarily unavailable"):
        run_all([seen(1)], NODE)


AT_FORK = """
import os, signal
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.probe import Probe, run_all
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
run_all([Probe(("U1",), "The probe", lambda _node: ())], Node())
"""


def test_one_that_is_ended_right_after_its_start_prints_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", AT_FORK], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
