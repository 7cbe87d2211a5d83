"""The barrier with real processes on one directory: all come, one dies, one is late, a requeue, and what it costs."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from squashmount.oci_hooks.barrier import OLD, Arrival, Barrier, pause
from squashmount.oci_hooks.barrier_remains import is_barrier

from squashmount.errors import SquashmountError

Report = dict[str, float | str]


class Step:
    """Processes of one step; each is forked and says at its end what it met."""

    def __init__(self, top: Path, size: int, *, name: str = "7.0.0.task", timeout: float = 60) -> None:
        self.shared, self.size, self.name, self.timeout = top / "shared", size, name, timeout
        self._children: dict[int, tuple[int, int]] = {}

    def start(self, rank: int, *, delay: float = 0, rounds: int = 1) -> int:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reader)
                os.write(writer, json.dumps(self._take_part(rank, delay, rounds)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        self._children[rank] = (child, reader)
        return child

    def _take_part(self, rank: int, delay: float, rounds: int) -> list[Report]:
        reports: list[Report] = []
        time.sleep(delay)
        for _ in range(rounds):
            arrival = Arrival(rank, self.size, f"node{rank // 8:02}")
            barrier = Barrier(str(self.shared), self.name, arrival, timeout=self.timeout, missing=self._missing)
            came = time.monotonic()
            try:
                passed = barrier.wait()
            except (SquashmountError, OSError) as err:
                reports.append({"error": str(err), "left": time.monotonic()})
                continue
            reports.append({"came": came, "left": time.monotonic(), "error": "", **passed._asdict()})
        return reports

    def _missing(self, arrived: dict[int, str]) -> str:
        return f"{sorted(set(range(self.size)) - arrived.keys())}"

    def end(self, rank: int) -> list[Report]:
        child, reader = self._children.pop(rank)
        with open(reader, encoding="utf-8") as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        assert status == 0, f"rank {rank} ended with status {status}"
        reports: list[Report] = json.loads(text)
        return reports

    def run(self, **options: int) -> list[list[Report]]:
        for rank in range(self.size):
            self.start(rank, **options)
        return [self.end(rank) for rank in range(self.size)]

    def kill(self, rank: int) -> None:
        child, reader = self._children.pop(rank)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., Step]:
    return lambda size, **options: Step(tmp_path, size, **options)


def test_nobody_passes_before_the_last_of_64_has_come(step: Callable[..., Step]) -> None:
    made = step(64)
    for rank in range(64):
        made.start(rank, delay=1.0 if rank == 40 else 0)
    reports = [made.end(rank)[0] for rank in range(64)]
    assert [each["error"] for each in reports] == [""] * 64
    assert min(float(each["left"]) for each in reports) >= float(reports[40]["came"])
    assert list(made.shared.iterdir()) == [], "the last to leave removes everything"


def test_it_costs_each_arrival_the_same_however_many_there_are(step: Callable[..., Step]) -> None:
    """16 requests and 32 names for each, besides looks at one file: n squared would show in both."""
    for size in (64, 320):
        reports = [each[0] for each in step(size).run()]
        assert [each["error"] for each in reports] == [""] * size
        besides = sum(float(each["requests"]) - float(each["looks"]) for each in reports)
        assert besides <= 16 * size
        assert sum(float(each["names"]) for each in reports) <= 32 * size
    # so many processes share what may be asked of the file system in a second
    assert 20_000 / pause(100, 20_000) <= 2000
    assert [round(pause(waited, 64), 3) for waited in (0, 1, 100)] == [0.032, 0.125, 2.0]


def test_containers_that_follow_each_other_meet_again(step: Callable[..., Step]) -> None:
    made = step(48)
    rounds = list(zip(*made.run(rounds=4), strict=True))
    for reports in rounds:
        assert {each["error"] for each in reports} == {""}
        assert min(float(each["left"]) for each in reports) >= max(float(each["came"]) for each in reports)
    assert list(made.shared.iterdir()) == []


def test_who_is_missing_is_named_to_everybody_at_once(step: Callable[..., Step]) -> None:
    made = step(64, timeout=4)
    for rank in range(64):
        if rank not in {17, 33}:
            made.start(rank)
    reports = [made.end(rank)[0] for rank in range(64) if rank not in {17, 33}]
    said = "2 of 64 containers did not come to the barrier in 4 s: [17, 33]."
    assert {each["error"] for each in reports} == {said}
    # who comes late hears it at once, and does not wait for those who have gone
    begin = time.monotonic()
    made.start(17)
    assert said in str(made.end(17)[0]["error"])
    assert time.monotonic() - begin < 4
    # who was there and comes again begins anew: the same name, another barrier
    assert [each[0]["error"] for each in made.run()] == [""] * 64


@pytest.mark.parametrize("delay", [0.38, 0.40, 0.41, 0.42, 0.44, 0.5])
def test_all_hear_the_same_when_the_last_comes_at_the_deadline(step: Callable[..., Step], delay: float) -> None:
    made = step(40, timeout=0.4)
    for rank in range(40):
        made.start(rank, delay=delay if rank == 7 else 0)
    said = {str(made.end(rank)[0]["error"]).partition("\n")[0] for rank in range(40)}
    assert len(said) == 1
    assert said == {""} or " of 40 containers did not come to the barrier in 0.4 s: " in said.pop()


def test_a_death_before_arrival_stops_the_others_with_its_number(step: Callable[..., Step]) -> None:
    made = step(8, timeout=2)
    made.start(5, delay=30)
    for rank in range(8):
        if rank != 5:
            made.start(rank)
    made.kill(5)
    reports = [made.end(rank)[0] for rank in range(8) if rank != 5]
    assert {each["error"] for each in reports} == {"1 of 8 containers did not come to the barrier in 2 s: [5]."}


def test_a_death_after_arrival_holds_up_nobody(step: Callable[..., Step]) -> None:
    made = step(40, timeout=20)
    made.start(3)
    while not list(made.shared.glob("*/0.0/3@*")):
        time.sleep(0.01)
    made.kill(3)
    for rank in range(40):
        if rank != 3:
            made.start(rank)
    assert [made.end(rank)[0]["error"] for rank in range(40) if rank != 3] == [""] * 39


def test_a_requeued_job_does_not_meet_its_former_self(step: Callable[..., Step]) -> None:
    killed = step(4)
    for rank in (0, 1):
        killed.start(rank)
    while len(list(killed.shared.glob("*/0.0/*"))) < 2:
        time.sleep(0.01)
    for rank in (0, 1):
        killed.kill(rank)
    assert [each[0]["error"] for each in step(4, name="7.0.1.task").run()] == [""] * 4
    # what the killed run left is removed when it is old
    (left,) = killed.shared.iterdir()
    past = time.time() - OLD - 60
    os.utime(left, (past, past))
    assert [each[0]["error"] for each in step(4, name="8.0.0.task").run()] == [""] * 4
    assert list(killed.shared.iterdir()) == []


def test_a_second_container_of_a_task_is_refused(step: Callable[..., Step]) -> None:
    made = step(2)
    made.start(0)
    while not list(made.shared.glob("*/0.0/0@*")):
        time.sleep(0.01)
    twin = step(2)
    twin.start(0)
    assert "Rank 0 is in the barrier 7.0.0.task already." in str(twin.end(0)[0]["error"])
    made.start(1)
    assert made.end(1)[0]["error"] == made.end(0)[0]["error"] == ""


def test_a_directory_that_vanishes_is_an_error_not_a_release(step: Callable[..., Step]) -> None:
    made = step(2, timeout=20)
    made.start(0)
    while not list(made.shared.glob("*/0.0/0@*")):
        time.sleep(0.01)
    shutil.rmtree(made.shared / "7.0.0.task")
    assert "was removed from" in str(made.end(0)[0]["error"])


def test_who_dies_while_deciding_does_not_hold_the_others_for_ever(
    step: Callable[..., Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squashmount.oci_hooks.barrier._GRACE", 0.5)
    made = step(3, timeout=1)
    made.start(0)
    while not list(made.shared.glob("*/0.0/0@*")):
        time.sleep(0.01)
    (made.shared / "7.0.0.task/end").touch()
    made.start(1)
    for rank in (0, 1):
        assert made.end(rank)[0]["error"] == "The process that was to end the barrier 7.0.0.task died."


WORD = "0123456789abcdef"


def put(top: Path, *paths: str, text: str = "") -> None:
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)


def age(top: Path) -> None:
    past = time.time() - OLD - 60
    for path in (top, *top.rglob("*")):
        os.utime(path, (past, past), follow_symlinks=False)


def tree(top: Path) -> dict[str, str]:
    return {str(path.relative_to(top)): path.read_text() for path in sorted(top.rglob("*")) if path.is_file()}


def test_what_is_not_a_barriers_stays_however_old(step: Callable[..., Step], tmp_path: Path) -> None:
    made = step(1)
    made.shared.mkdir(mode=0o700)
    put(made.shared, "results/deep/thesis.dat", "1.0.0.task.txt/x", "7.0.0.tasks/state", "notes", text="mine")
    # names of ours, and in each something that is not
    put(made.shared, "1.0.0.task/thesis.dat", text="mine")
    put(made.shared, "2.0.0.task/state", text="of the union\n")
    put(
        made.shared,
        "3.0.0.node/state",
        f".4.0.0.task.{WORD}/state",
        "5.0.0.task/state",
        "6.0.0.task/state",
        text=f"{WORD}\n",
    )
    put(made.shared, "3.0.0.node/0.0/3@n1", f".4.0.0.task.{WORD}/0.0/thesis", "5.0.0.task/end", text="mine")
    put(made.shared, "6.0.0.task/0.0/3/deep", text="mine")
    outside = tmp_path / "outside"
    put(outside, "state", text=f"{WORD}\n")
    (made.shared / "8.0.0.task").symlink_to(outside)
    (made.shared / "9.0.0.task").mkdir()
    os.mkfifo(made.shared / "9.0.0.task/state")
    age(made.shared)
    before = tree(made.shared)
    assert made.run()[0][0]["error"] == ""
    assert tree(made.shared) == before
    assert tree(outside) == {"state": f"{WORD}\n"}
    assert (made.shared / "9.0.0.task/state").is_fifo()


def test_what_the_dead_left_goes_in_every_state_they_left_it(step: Callable[..., Step]) -> None:
    made = step(1)
    made.shared.mkdir(mode=0o700)
    put(made.shared, "1.0.0.task/state", "2.0.0.node/state", f".3.0.0.task.{WORD}/state", text=f"{WORD}\ngo\n")
    put(made.shared, "1.0.0.task/0.0/3@n1.x", "1.0.0.task/0.12/400@n7", "1.0.0.task/1.0/12", "2.0.0.node/end")
    put(made.shared, f".4.0.0.task.{WORD}/state")
    (made.shared / f".5.0.0.task.{WORD}").mkdir()
    age(made.shared)
    assert made.run()[0][0]["error"] == ""
    assert list(made.shared.iterdir()) == []


def test_names_of_barriers() -> None:
    ours = ("7.0.0.task", "7.0.0.node", f".7.0.0.task.{WORD}")
    assert [name for name in ours if not is_barrier(name)] == []
    others = (
        *(
            "",
            ".",
            "..",
            "task",
            "7.0.0",
            ".7.0.0.task",
            f"7.0.0.task.{WORD}",
            "7.0.0.job",
            "7.0.0.task.old",
            "x.0.0.task",
        ),
        *("7..0.task", "-7.0.0.task", "\u0667.0.0.task", f".7.0.0.task.{WORD}0", ".7.0.0.task.0123456789abcdeg"),
    )
    assert [name for name in others if is_barrier(name)] == []


def error_of(made: Step, rank: int = 0) -> str:
    made.start(rank)
    return str(made.end(rank)[0]["error"])


def test_a_state_that_is_no_file_holds_up_nobody(step: Callable[..., Step]) -> None:
    made = step(2, timeout=20)
    (made.shared / made.name).mkdir(parents=True, mode=0o700)
    made.shared.chmod(0o700)
    os.mkfifo(made.shared / made.name / "state")
    begin = time.monotonic()
    assert "7.0.0.task/state is not what a barrier makes." in error_of(made)
    assert time.monotonic() - begin < 15
    (made.shared / made.name / "state").unlink()
    (made.shared / made.name / "state").symlink_to("/etc/hostname")
    assert "Too many levels of symbolic links" in error_of(made)


def test_what_was_written_before_is_shown_without_control_characters(step: Callable[..., Step]) -> None:
    made = step(2, timeout=2)
    put(made.shared, f"{made.name}/state", text=f"{WORD}\nstopped \x1b[2Jdone\n")
    for path in (made.shared, made.shared / made.name):
        path.chmod(0o700)
    said = error_of(made)
    assert said.startswith("\\x1b[2Jdone")
    assert "\x1b" not in said


@pytest.mark.parametrize("place", ["", "7.0.0.task", "7.0.0.task/state"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_can_write_is_not_believed(step: Callable[..., Step], place: str, mode: int) -> None:
    made = step(1)
    put(made.shared, f"{made.name}/state", text=f"{WORD}\n")
    for path in (made.shared, made.shared / made.name):
        path.chmod(0o700)
    (made.shared / place).chmod(mode)
    assert f"{made.shared / place} belongs to another user, or others can write to it." in error_of(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to others")
@pytest.mark.parametrize("place", ["", "7.0.0.task", "7.0.0.task/state"])
def test_what_belongs_to_others_is_not_believed(step: Callable[..., Step], place: str) -> None:
    made = step(1)
    put(made.shared, f"{made.name}/state", text=f"{WORD}\n")
    for path in (made.shared, made.shared / made.name):
        path.chmod(0o700)
    os.chown(made.shared / place, 12345, 12345)
    assert f"{made.shared / place} belongs to another user, or others can write to it." in error_of(made)
