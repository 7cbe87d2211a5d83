"""One mount of the simulated parallel file system (passthrough.py), as the harness sees it. Root, in scripts/lab."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from lab import wait_for

PROGRAM = Path(__file__).resolve().parent / "passthrough.py"


class SharedMount:
    """`source` as one node sees it at `at`; see passthrough.py for what the settings do."""

    def __init__(self, source: Path, at: Path) -> None:
        """Make the mount point; nothing is mounted yet."""
        self.source = source
        self.at = at
        at.mkdir(parents=True)
        self._process: subprocess.Popen[str] | None = None

    def start(
        self, *, delay: float = 0.0, bandwidth: float = 0.0, clock: Path | None = None, read_ahead: int | None = None
    ) -> None:
        """Mount it anew, with nothing cached. Seconds, bytes a second, bytes; mounts share a bandwidth by `clock`."""
        self.close()
        argv = [str(self.source), str(self.at), f"--delay={delay}", f"--bandwidth={bandwidth}"]
        argv += [f"--clock={clock}"] if clock else []
        argv += [f"--read-ahead={read_ahead}"] if read_ahead is not None else []
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise AssertionError(f"the file system on {self.at} did not start: it ended with {self._process.wait(10)}")

    def forget(self) -> None:
        """Forget what was counted."""
        self._ask("reset")

    def counts(self) -> dict[str, dict[str, int]]:
        """Return path -> {kind of request: number, "bytes": read from it}; "" is the mount's root."""
        found: dict[str, dict[str, int]] = self._ask("counts")
        return found

    def trace(self) -> list[tuple[str, str, int, int]]:
        """Return (kind, path, offset, bytes) of every request."""
        return [(kind, path, offset, size) for kind, path, offset, size in self._ask("trace")]

    def drop_data(self) -> None:
        """Let the kernel forget the pages of this mount's files; names and attributes expire by themselves."""
        for top, _dirs, names in os.walk(self.at):
            for name in names:
                with suppress(OSError), open(os.open(os.path.join(top, name), os.O_RDONLY | os.O_NOFOLLOW)) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Unmount."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.communicate(timeout=20)
        wait_for(lambda: not os.path.ismount(self.at), f"{self.at} is unmounted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command: str) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())
