"""All tests again on Debian 13: Podman 5.4, crun, squashfuse 0.5 and Python 3.13 of that release (scripts/platform)."""

import pytest
from lab import TOP, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

SECONDS = 1800


def test_the_whole_suite_on_debian_13() -> None:
    pytest_there = ("scripts/lab", ".venv/bin/python", "-m", "pytest", "-q", "--durations=10")
    # timeout(1): scripts/platform removes what it made when it is sent SIGTERM
    command = ("timeout", "--kill-after=60", str(SECONDS), "scripts/platform", "trixie", *pytest_there)
    done = run(*command, cwd=str(TOP), timeout=SECONDS + 120)
    text = f"{done.out}\n{done.err}"
    assert done.code == 0, f"exit {done.code}\n" + "\n".join(text.splitlines()[-200:])
    assert " passed" in done.out
