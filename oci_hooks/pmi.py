"""The socket of Slurm's PMI2: which one it is, for `squashmount-runtime`, which leaves it open in the container.

The variable PMI_FD cannot say it: an image can have a variable of that name, and any number.
"""

import os

from squashmount.lean import Any

from .plan import PMI_SOCKET, Plan

_NUMBER = "PMI_FD"


def name_socket(config: dict[str, Any], plan: Plan, environ: dict[str, str]) -> None:
    """Write into the configuration which socket of Podman's the rank gets: `NUMBER socket:[INODE]` (proc(5), fd).

    It is the job's if the plan passes its PMI_FD on. Otherwise nothing may stand there, whoever wrote it.
    """
    config["annotations"].pop(PMI_SOCKET, None)
    number = environ.get(_NUMBER, "")
    if plan.env_set.get(_NUMBER) != number or not (number.isascii() and number.isdecimal()):
        return
    try:
        found = os.readlink(f"/proc/{os.getppid()}/fd/{number}")
    except OSError:
        return
    if found.startswith("socket:"):
        config["annotations"][PMI_SOCKET] = f"{number} {found}"
