"""What every program does with standard streams that are closed, full or no more read."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from squashmount.storage_conf.cli import main
sys.exit(main(["doctor", "--only", "U04", "--json"]))
"""


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">&-", ""),
        ("<&- >&- 2>&-", ""),
        ("> /dev/full", "squashmount-conf: The answer cannot be written: No space left on device."),
    ],
)
def test_a_closed_or_full_standard_output(redirection: str, said: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", PROGRAM]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == said
    assert done.returncode == (6 if said else 0)
