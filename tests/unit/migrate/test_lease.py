"""The lock, raced by real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from squashmount.migrate import lease

from squashmount.errors import BusyError

WORKER = """
import sys, time
from squashmount.migrate import lease
directory, count = sys.argv[1], int(sys.argv[2])
for _ in range(count):
    with lease.hold(directory, "store", doing="count", timeout=60) as held:
        path = directory + "/../counter"
        value = int(open(path).read())
        time.sleep(0.002)
        held.check()
        open(path, "w").write(str(value + 1))
"""
HOLDER = """
import sys, time
from squashmount.migrate import lease
with lease.hold(sys.argv[1], "store", doing="sleep"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / "lock").mkdir()
    return str(tmp_path / "lock")


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def foreign(directory: str) -> lease.Holder:
    """Leave a lock as if somebody on another host held it."""
    holder = replace(lease.me("squash"), host="other-node", user="ada")
    Path(directory, "store").write_text(json.dumps(asdict(holder)))
    return holder


def test_one_at_a_time(directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.01)
    (tmp_path / "counter").write_text("0")
    workers = [start(WORKER, directory, "12") for _ in range(6)]
    assert [worker.wait(100) for worker in workers] == [0] * 6
    for worker in workers:
        assert worker.stdout
        worker.stdout.close()
    assert (tmp_path / "counter").read_text() == "72"
    assert os.listdir(directory) == []


def test_one_at_a_time_without_hard_links(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with (
        lease.hold(directory, "store", doing="first"),
        pytest.raises(BusyError, match="first"),
        lease.hold(directory, "store", doing="second", timeout=0),
    ):
        pass
    assert os.listdir(directory) == []


def test_a_killed_holder_on_this_host_is_seen_at_once(directory: str) -> None:
    with start(HOLDER, directory) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    began = time.monotonic()
    with lease.hold(directory, "store", doing="next"):
        assert time.monotonic() - began < 2


def test_a_holder_that_hidepid_hides_is_alive(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """proc(5): with hidepid=2 /proc/PID of another user does not exist; kill(2) says EPERM, not ESRCH."""

    def refused(pid: int, number: int) -> None:
        assert (pid, number) == (holder.pid, 0)
        raise PermissionError(1, "Operation not permitted")

    holder = lease.me("publish")
    monkeypatch.setattr(os, "kill", refused)
    monkeypatch.setattr(lease, "_start_time", lambda _pid: 0)
    assert not holder.is_dead()
    Path(directory, "image").write_text(json.dumps(asdict(holder)))
    assert sorted(lease.holders(directory)) == ["image"], "its staging directory would be swept"
    monkeypatch.setattr(lease, "_start_time", lambda _pid: holder.started + 1)
    assert holder.is_dead(), "the number was given to another process"


def test_a_living_holder_is_waited_for_and_named(directory: str) -> None:
    with start(HOLDER, directory) as holder:
        assert holder.stdout
        holder.stdout.readline()
        said: list[str] = []
        with (
            pytest.raises(BusyError) as caught,
            lease.hold(directory, "store", doing="next", timeout=1.5, on_wait=said.append),
        ):
            pass
        holder.kill()
    assert f"process {holder.pid}: sleep" in caught.value.brief
    assert "--wait" in caught.value.hint
    assert f"process {holder.pid}: sleep" in said[0]


def test_a_silent_holder_elsewhere_is_replaced_and_a_beating_one_is_not(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)
    foreign(directory)
    path = os.path.join(directory, "store")
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        for _ in range(8):
            os.utime(path)
            time.sleep(0.2)
        os._exit(0)
    with lease.hold(directory, "store", doing="next"):
        waited = time.monotonic() - began
    os.waitpid(pid, 0)
    assert 1.4 < waited < 6


@pytest.mark.filterwarnings("ignore:This process")
def test_many_waiters_take_over_one_dead_lock(directory: str, tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    foreign(directory)
    impatient = WORKER.replace("directory, count", "lease.STALE_SECONDS = 0.5\ndirectory, count", 1)
    workers = [start(impatient, directory, "3") for _ in range(6)]
    assert [worker.wait(100) for worker in workers] == [0] * 6
    for worker in workers:
        assert worker.stdout
        worker.stdout.close()
    assert (tmp_path / "counter").read_text() == "18"


def test_a_holder_that_lost_the_lock_learns_it_and_does_not_release_the_new_one(directory: str) -> None:
    with lease.hold(directory, "store", doing="slow") as held:
        held.check()
        os.unlink(held.path)
        foreign(directory)
        with pytest.raises(BusyError, match="took over"):
            held.check()
    assert os.path.exists(held.path)


def test_heartbeats(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with lease.hold(directory, "store", doing="work") as held:
        first = os.stat(held.path).st_mtime_ns
        time.sleep(0.3)
        assert os.stat(held.path).st_mtime_ns > first


def test_sweep_removes_breakers_of_locks_that_are_gone(directory: str) -> None:
    holder = foreign(directory)
    Path(directory, f".break-store-{holder.token}-1").touch()
    Path(directory, ".break-store-0123-1").touch()
    for name, age in ((".tmp-old", 4000), (".tmp-new", 0)):
        Path(directory, name).touch()
        os.utime(os.path.join(directory, name), (time.time() - age,) * 2)
    lease.sweep(directory)
    os.unlink(os.path.join(directory, ".tmp-new"))
    assert sorted(os.listdir(directory)) == [f".break-store-{holder.token}-1", "store"]


def test_a_torn_lock_file_is_still_a_lock(directory: str) -> None:
    Path(directory, "store").write_text('{"user": "a')
    with pytest.raises(BusyError, match="somebody"), lease.hold(directory, "store", doing="x", timeout=0):
        pass


def test_a_long_silent_holder_counts_as_gone(directory: str) -> None:
    foreign(directory)
    with lease.hold(directory, "image", doing="mine"):
        assert sorted(lease.holders(directory)) == ["image", "store"]
        os.utime(os.path.join(directory, "store"), (time.time() - 4000,) * 2)
        assert sorted(lease.holders(directory)) == ["image"]
