"""Start COUNT copies of a command at once and time each; runs as the user, so that no change of user is measured.

    launch.py COUNT SECONDS COMMAND [ARG...]

Prints JSON: `makespan` from the first start to the last end, and for each copy its wall time, exit code, output and
when it was started (time(2)). Copies that run longer than SECONDS are killed and have the code -9.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def main(count: int, seconds: float, command: list[str]) -> int:
    files = [(tempfile.TemporaryFile(), tempfile.TemporaryFile()) for _ in range(count)]  # noqa: SIM115
    first = time.perf_counter()
    starts, running = [], {}
    for number, (out, err) in enumerate(files):
        starts.append((time.time(), time.perf_counter()))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        running[process.pid] = number

    def kill(_number: int, _frame: object) -> None:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    ends: dict[int, tuple[float, int]] = {}
    while running:
        pid, status = os.wait()
        if pid in running:
            ends[running.pop(pid)] = (time.perf_counter(), os.waitstatus_to_exitcode(status))
    makespan = time.perf_counter() - first
    runs = []
    for number, (out, err) in enumerate(files):
        end, code = ends[number]
        out.seek(0)
        err.seek(0)
        runs.append(
            {
                "wall": end - starts[number][1],
                "started": starts[number][0],
                "code": code,
                "out": out.read().decode(errors="replace"),
                "err": err.read().decode(errors="replace"),
            }
        )
    print(json.dumps({"makespan": makespan, "runs": runs}))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
