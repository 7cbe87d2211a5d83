"""What changes with newer programs, on Debian unstable: sssd with its generic provider, Podman 5.8, Python 3.14."""

import pytest
from lab import TOP, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

SECONDS = 900
_CANNOT_BE_MADE = 69
"""scripts/platform ends with it when the release cannot be installed; unstable is broken on some days."""
FILES = (
    *("directory_generic", "directory", "doctor", "doctor_ids", "doctor_ldap", "doctor_live"),
    *("storage_conf", "storage_conf_rootless", "site_toml", "newuidmap", "story"),
)


def test_what_is_newer_on_debian_unstable() -> None:
    files = [f"tests/integration/test_{name}.py" for name in FILES]
    pytest_there = ("scripts/lab", ".venv/bin/python", "-m", "pytest", "-q", "--durations=5", *files)
    command = ("timeout", "--kill-after=60", str(SECONDS), "scripts/platform", "sid", *pytest_there)
    done = run(*command, cwd=str(TOP), timeout=SECONDS + 120)
    text = f"{done.out}\n{done.err}"
    if done.code == _CANNOT_BE_MADE:
        pytest.xfail("Debian unstable cannot be installed today: " + text[-500:])
    assert done.code == 0, f"exit {done.code}\n" + "\n".join(text.splitlines()[-200:])
    assert " passed" in done.out
