"""Run probes so that none can hang, crash or slow down the doctor.

Each runs in a child in a session of its own, all of them at once; what it finds comes back as JSON through a pipe. A
child that does not answer in time is killed with everything it started, and that is a finding, too. A child that
cannot be killed (state D, a dead file system) is left behind: nobody waits for it.

One cause is named once. A probe whose trouble may only follow from something else names those checks in
`explained_by` (causes.py has lists); it waits for them, and when one of them found an error (a warning does not count)
it is not run at all and its ids are in `Outcome.skipped`. So the live id map (U42) of a user without a range is skipped
because of U07. What is not chosen by --only is not waited for. Inside a probe the same is its own business: report the
cause, not what follows from it.
"""

import json
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from squashmount.errors import HostError

from ..finding import Fact, Finding, Severity, error
from .node import Node

_LIMIT = 1 << 20
"""Bytes of findings that are read from one child; a real answer is a few kilobytes."""

_GRACE = 0.3
"""Seconds a child has to end by itself."""


class NotLookedAtError(Exception):
    """A probe says that it cannot look: its ids are skipped, because of the id given, whatever severity that has."""


@dataclass(frozen=True)
class Probe:
    """One or several checks that share what they must find out.

    `ids` are what it may report; `seconds` is how long it may take; an error of one of `explained_by` is cause enough
    for whatever this probe would see: then it is not run.
    """

    ids: tuple[str, ...]
    title: str
    run: Callable[[Node], Iterable[Finding | Fact]]
    seconds: float = 5.0
    explained_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What was found, in the order of the probes, and the ids that were not looked at, with the id of the cause.

    Of a probe that crashed no id was looked at; the cause is the first of them, under which the crash is told.
    """

    findings: tuple[Finding, ...]
    facts: dict[str, str]
    skipped: dict[str, str]


@dataclass
class _Child:
    probe: Probe
    pid: int
    pipe: int
    end: float
    said: bytearray


def run_all(
    probes: Sequence[Probe], node: Node, *, at_once: int = 8, facts: dict[str, str] | None = None
) -> list[Finding]:
    """Run the probes, at most `at_once` at a time, and return what they found, in the order of the probes.

    `facts` is filled with what they learned, in the same order.
    """
    outcome = examine(probes, node, at_once=at_once)
    if facts is not None:
        facts |= outcome.facts
    return list(outcome.findings)


def examine(probes: Sequence[Probe], node: Node, *, at_once: int = 8) -> Outcome:
    """Run the probes, at most `at_once` at a time, except those that what another one found explains.

    ValueError when probes wait for each other.
    """
    waiting = list(probes)
    found: dict[Probe, list[Finding | Fact]] = {}
    skipped: dict[str, str] = {}
    with selectors.DefaultSelector() as selector, _killed_at_the_end() as children:
        while waiting or children:
            while len(children) < at_once and (probe := _next(waiting, children)):
                waiting.remove(probe)
                if cause := _cause(probe, found, skipped):
                    found[probe] = []
                    skipped |= dict.fromkeys(probe.ids, cause)
                    continue
                child = _start(probe, node, [other.pipe for other in children.values()])
                children[child.pipe] = child
                selector.register(child.pipe, selectors.EVENT_READ)
            for child in _ready(selector, children):
                selector.unregister(child.pipe)
                del children[child.pipe]
                found[child.probe], why_not = _answer(child)
                if why_not:
                    skipped |= dict.fromkeys(child.probe.ids, why_not)
    answers = [answer for probe in probes for answer in found[probe]]
    return Outcome(
        findings=tuple(answer for answer in answers if isinstance(answer, Finding)),
        facts={answer.name: answer.value for answer in answers if isinstance(answer, Fact)},
        skipped=skipped,
    )


def _next(waiting: Sequence[Probe], children: dict[int, _Child]) -> Probe | None:
    """Return the first probe that waits for none that has not answered yet."""
    unknown = {name for probe in (*waiting, *(child.probe for child in children.values())) for name in probe.ids}
    ready = (probe for probe in waiting if not unknown.difference(probe.ids).intersection(probe.explained_by))
    chosen = next(ready, None)
    if waiting and not chosen and not children:
        raise ValueError(f"probes wait for each other: {', '.join(probe.ids[0] for probe in waiting)}")
    return chosen


def _cause(probe: Probe, found: dict[Probe, list[Finding | Fact]], skipped: dict[str, str]) -> str:
    """Return the id of the error that explains whatever this probe would see, or of one that explains that."""
    # of an id that was not chosen nothing is told, so it cannot be the reason
    told = (answer for earlier, said in found.items() for answer in said if _told(earlier, answer))
    causes = skipped | {answer.id: answer.id for answer in told if isinstance(answer, Finding)}
    return next((causes[name] for name in probe.explained_by if name in causes), "")


def _told(probe: Probe, answer: Finding | Fact) -> bool:
    return isinstance(answer, Finding) and answer.severity is Severity.ERROR and answer.id in probe.ids


def _start(probe: Probe, node: Node, others: Sequence[int]) -> _Child:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # a signal right after the fork would be an exception in Python's own hooks, which print it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        pid = os.fork()
        if pid == 0:
            _as_child(probe, node, reader, writer, others)
    except OSError as err:  # RLIMIT_NPROC, pids.max
        for pipe in (reader, writer):
            os.close(pipe)
        raise HostError(
            f"No process can be started: {os.strerror(err.errno or 0)}.",
            details="Podman needs several for each container.",
            hint="end some of yours (ps -u $USER); `ulimit -u`, and pids.max of the job's cgroup are the limits",
        ) from err
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(writer)
    return _Child(probe, pid, reader, time.monotonic() + probe.seconds, bytearray())


def _as_child(probe: Probe, node: Node, reader: int, writer: int, others: Sequence[int]) -> None:
    """Be the child: never returns."""
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, _leave)
        for pipe in (reader, *others):
            os.close(pipe)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):  # plugins of nsswitch print on them
            os.dup2(null, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        answers = [_as_json(answer) for answer in probe.run(node)]
        _write(writer, json.dumps({"answers": answers}).encode())
    except NotLookedAtError as cause:
        _write(writer, json.dumps({"not": str(cause)}).encode())
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells it
        with suppress(OSError):
            _write(writer, json.dumps({"bug": traceback.format_exc()}).encode())
    finally:
        os._exit(0)


def _leave(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


def _write(writer: int, data: bytes) -> None:
    while data:
        data = data[os.write(writer, data) :]


def _ready(selector: selectors.BaseSelector, children: dict[int, _Child]) -> Iterator[_Child]:
    """Wait for the next event; yield the children that have answered or whose time is over."""
    if not children:  # all that were left are skipped
        return
    wait = max(0.0, min(child.end for child in children.values()) - time.monotonic())
    over: list[_Child] = []
    for key, _ in selector.select(wait):
        child = children[key.fd]
        data = os.read(child.pipe, 1 << 16)
        child.said += data
        if not data or len(child.said) > _LIMIT:
            over.append(child)
    now = time.monotonic()
    over += [child for child in children.values() if child.end <= now and child not in over]
    yield from over


def _answer(child: _Child) -> tuple[list[Finding | Fact], str]:
    """Return what a child found, and where it has not looked at its ids the id that says why: a crash has its own."""
    late = time.monotonic() >= child.end
    os.close(child.pipe)
    _kill(child.pid)
    try:
        said = json.loads(child.said)
    except ValueError:
        return [_silent(child.probe, late=late)], ""
    if "bug" in said:
        return [_bug(child.probe, said["bug"])], child.probe.ids[0]
    if "not" in said:
        return [], said["not"]
    return [_from_json(item) for item in said["answers"]], ""


def _kill(pid: int) -> None:
    """Kill the session and collect its leader, without waiting for one that cannot die.

    The leader has a moment to remove what it made: Podman's pause process has a session of its own.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _GRACE
    while time.monotonic() < end and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.002)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)  # it has not come to setsid yet
    for _ in range(20):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
                continue
        return


def _silent(probe: Probe, *, late: bool) -> Finding:
    how = f"did not answer in {probe.seconds:g} s" if late else "died without an answer"
    return error(
        f"{probe.title} {how}.",
        "Something it asks hangs: a file system that does not answer, sssd, or a lock that nobody grants; Podman would "
        "hang there as well.",
        "look at the file systems with `df`, at sssd with `id`; then again with `squashmount-conf doctor --only "
        f"{','.join(probe.ids)}`",
        id=probe.ids[0],
    )


def _bug(probe: Probe, text: str) -> Finding:
    return error(
        f"{probe.title} failed in a way nobody foresaw.",
        "This is a mistake of squashmount-conf: what it would have looked at may be wrong or right.",
        "report it with what is seen here",
        id=probe.ids[0],
        evidence=text.strip(),
    )


def _as_json(answer: Finding | Fact) -> dict[str, str]:
    return {"fact": answer.name, "value": answer.value} if isinstance(answer, Fact) else answer.as_json()


def _from_json(item: dict[str, str]) -> Finding | Fact:
    if "fact" in item:
        return Fact(item["fact"], item["value"])
    return Finding(
        Severity(item["severity"]), item["what"], item["why"], item["fix"], item["id"], evidence=item["evidence"]
    )


@contextmanager
def _killed_at_the_end() -> Iterator[dict[int, _Child]]:
    """Give the table of children; those still in it at the end (Ctrl-C) are killed."""
    children: dict[int, _Child] = {}
    try:
        yield children
    finally:
        for child in children.values():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child.pid, signal.SIGTERM)  # all at once: each needs a moment
        for child in children.values():
            os.close(child.pipe)
            _kill(child.pid)
