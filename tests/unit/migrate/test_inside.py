"""Decisions of the part inside the user namespace; test_migrate.py runs it whole."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from squashmount.migrate import inside, squash
from squashmount.migrate.job import Job
from squashmount.migrate.mksquashfs import Format, Mksquashfs
from squashmount.migrate.survey import Survey

from squashmount import linux
from squashmount.errors import HostError, ToolError

JOB = Job(
    podman=("podman", "--root=/a b"),
    image="0" * 64,
    output="/dir/out",
    binary=Mksquashfs("/usr/bin/mksquashfs", (4, 5, 1)),
    format=Format("xz", 0),
    created=5,
    runtime_dir="/dir/run",
    owner_records=("/one.tar-split.gz",),
    owners_seen=(0, 33),
)


def test_the_job_travels_as_one_line() -> None:
    line = JOB.to_json()
    assert line.count(b"\n") == 1
    assert Job.from_json(line) == JOB


@pytest.mark.parametrize(
    ("found", "version", "mode"),
    [
        (Survey(), (4, 4), "keep"),
        (Survey(image_xattrs=1), (4, 4), "keep"),
        (Survey(storage_xattrs=1), (4, 4), "none"),
        (Survey(host_xattrs=1), (4, 4), "none"),
        (Survey(host_xattrs=9, image_xattrs=1), (4, 4), "keep"),
        (Survey(host_xattrs=9, image_xattrs=1), (4, 6), "filter"),
        (Survey(storage_xattrs=1, image_xattrs=1), (4, 6, 1), "filter"),
    ],
)
def test_xattrs(found: Survey, version: tuple[int, ...], mode: str) -> None:
    assert inside._xattr_mode(replace(JOB, binary=Mksquashfs("m", version)), found) == mode


def test_storage_xattrs_never_reach_the_squash_even_if_that_means_no_squash() -> None:
    with pytest.raises(ToolError, match="cannot leave out") as caught:
        inside._xattr_mode(JOB, Survey(storage_xattrs=1, image_xattrs=1, example="user.overlay.x on /f"))
    assert "user.overlay.x on /f" in caught.value.details
    assert "4.6" in caught.value.hint


def test_owners_without_a_record_are_not_guessed(tmp_path: Path) -> None:
    blind = replace(JOB, owner_records=())
    with pytest.raises(HostError, match="cannot be restored"):
        inside._owners_to_restore(blind, str(tmp_path), Survey(owners={0}))
    assert inside._owners_to_restore(blind, str(tmp_path), Survey(owners={0, 33})) == []
    assert inside._owners_to_restore(replace(blind, owners_seen=(0,)), str(tmp_path), Survey(owners={0})) == []


def test_a_failing_mksquashfs_is_quoted(tmp_path: Path) -> None:
    program = tmp_path / "mksquashfs"
    program.write_text("#!/bin/sh\necho '[==] 1/2  50%'; echo 'Write failed: No space left on device' >&2; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(ToolError, match="exit status 3") as caught:
        inside._run([str(program)])
    assert "No space left" in caught.value.details


def test_percentages_are_reported_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mksquashfs"
    program.write_text(
        "#!/bin/sh\n[ -t 1 ] || exit 9\nprintf '[=] 1/2  50%%\\r'; sleep 0.3; printf '[==] 2/2 100%%\\n'\n"
    )
    program.chmod(0o755)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    inside._run([str(program)])
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"percent": 50}, {"percent": 100}]


def test_nothing_happens_without_a_job() -> None:
    argv = [sys.executable, "-P", "-m", "squashmount.migrate.inside"]
    assert subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode == 1


@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("ordered", [False, True])
def test_the_first_process_is_watched_without_pidfd(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """RHEL 8 has Linux 4.18: no pidfd_open(2)."""
    monkeypatch.delattr(os, "pidfd_open")
    stop_reader, stop_writer = os.pipe()
    with open(stop_reader, "rb") as stdin:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            ours.close()
            os.close(stop_writer)
            time.sleep(30 if ordered else 0.2)
            os._exit(7)
        theirs.close()
        if ordered:
            os.close(stop_writer)
        assert inside._watch(child, ours) == (-signal.SIGKILL if ordered else 7)
        ours.close()
        if not ordered:
            os.close(stop_writer)


def test_an_orphaned_first_process_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "die_with_parent", lambda _parent: None)
    monkeypatch.setattr(linux, "mount", lambda *_: pytest.fail("it went on"))
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert inside._first_process(JOB, theirs) == 1


@pytest.mark.parametrize("text", ["No space left on device", "Disk quota exceeded"])
def test_no_space_has_its_own_exit_code(text: str) -> None:
    error = squash._error({"kind": "ToolError", "brief": "mksquashfs failed", "details": f"Write failed: {text}"})
    assert (error.exit_code, "prune --now" in error.hint) == (6, True), "removed images keep their space for a day"
    assert squash._error({"kind": "HostError", "brief": "b", "details": "d"}).exit_code == 9


def test_creation_times() -> None:
    assert squash.seconds_since_1970("1970-01-01T00:01:00.5Z") == 60
    assert squash.seconds_since_1970("0001-01-01T00:00:00Z") == 0
    assert squash.seconds_since_1970("2200-01-01T00:00:00Z") == 2**32 - 1
    assert squash.seconds_since_1970("what") == 0


def test_source_date_epoch_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    program = tmp_path / "mksquashfs"
    program.write_text('#!/bin/sh\n[ -z "$SOURCE_DATE_EPOCH" ]\n')
    program.chmod(0o755)
    inside._run([str(program)])
    assert os.environ["SOURCE_DATE_EPOCH"] == "1"
