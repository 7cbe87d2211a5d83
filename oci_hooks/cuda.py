"""What a CUDA image demands of the driver (NVIDIA_REQUIRE_*), and what a driver offers.

The language is that of nvidia-container-cli: conditions with commas must all hold, of groups with spaces one is enough,
and of several variables each must hold (NVIDIA Container Toolkit, "Environment variables", Constraints).
"""

from squashmount.lean import NamedTuple

# Driver branch, and the newest CUDA its libcuda speaks (CUDA release notes, "CUDA Toolkit and Corresponding Driver
# Versions"; the first driver of each, x86_64 Linux)
_CUDA_OF_DRIVER = (
    ((590, 44), (13, 1)),
    ((580, 65), (13, 0)),
    ((575, 51), (12, 9)),
    ((570, 26), (12, 8)),
    ((560, 28), (12, 6)),
    ((555, 42), (12, 5)),
    ((550, 54), (12, 4)),
    ((545, 23), (12, 3)),
    ((535, 54), (12, 2)),
    ((530, 30), (12, 1)),
    ((525, 60), (12, 0)),
    ((520, 61), (11, 8)),
    ((515, 43), (11, 7)),
    ((510, 39), (11, 6)),
    ((495, 29), (11, 5)),
    ((470, 42), (11, 4)),
    ((465, 19), (11, 3)),
    ((460, 27), (11, 2)),
    ((455, 23), (11, 1)),
    ((450, 36), (11, 0)),
    ((440, 33), (10, 2)),
    ((418, 39), (10, 1)),
    ((410, 48), (10, 0)),
    ((396, 26), (9, 2)),
    ((390, 46), (9, 1)),
    ((384, 81), (9, 0)),
    ((375, 26), (8, 0)),
)
_REQUIREMENTS = tuple(f"NVIDIA_REQUIRE_{what}" for what in ("CUDA", "DRIVER", "BRAND", "ARCH", "JETPACK"))
_OPERATORS = (">=", "<=", "!=", "==", "=", ">", "<")

Version = tuple[int, ...]


class Verdict(NamedTuple):
    """Whether a demand is met: yes, no, or not to be known (None), with a sentence about it."""

    met: bool | None
    why: str


def version(text: str) -> Version:
    """Return `535.104.05` as (535, 104, 5); () for what is not dotted numbers."""
    parts = text.strip().split(".")
    return tuple(int(part) for part in parts) if all(part.isascii() and part.isdigit() for part in parts) else ()


def cuda_of_driver(driver: Version) -> Version:
    """Return the newest CUDA a driver offers, as far as this table knows; () for one older than the table."""
    return next((cuda for first, cuda in _CUDA_OF_DRIVER if driver >= first), ())


def requirements(environ: "dict[str, str]") -> "dict[str, str]":
    """Return the NVIDIA_REQUIRE_* of a container's environment; none where it switches the check off."""
    if environ.get("NVIDIA_DISABLE_REQUIRE", "").lower() in {"1", "true", "yes", "on"}:
        return {}
    # by name: who remembers a plan remembers what was asked, and the whole environment is another for each container
    found = {name: environ.get(name, "") for name in _REQUIREMENTS}
    return {name: value for name, value in found.items() if value.strip()}


def check(text: str, facts: "dict[str, str]") -> Verdict:
    """Compare one NVIDIA_REQUIRE_* with what is known (`driver`, `cuda`, …). Unknown facts decide nothing."""
    groups = [[_holds(condition, facts) for condition in group.split(",") if condition] for group in text.split()]
    known = ", ".join(f"{name} {value}" for name, value in facts.items())
    if any(all(group) for group in groups):
        return Verdict(met=True, why=f"{known} is enough for {text}")
    if any(False not in group for group in groups):
        return Verdict(met=None, why=f"{text} cannot be decided by {known}")
    return Verdict(met=False, why=f"the image demands {text}, and the host has {known}")


def _holds(condition: str, facts: "dict[str, str]") -> bool | None:
    operator = next((each for each in _OPERATORS if each in condition), "")
    name, _, wanted = condition.partition(operator) if operator else (condition, "", "")
    have = facts.get(name.strip())
    if not operator or have is None:
        return None
    if version(have) and version(wanted):
        order = _compared(version(have), version(wanted))
    elif operator in {"=", "==", "!="}:
        order = 0 if have == wanted.strip() else 1
    else:
        return None
    return {
        ">=": order >= 0,
        "<=": order <= 0,
        "!=": order != 0,
        "==": order == 0,
        "=": order == 0,
        ">": order > 0,
        "<": order < 0,
    }[operator]


def _compared(have: Version, wanted: Version) -> int:
    """Return -1, 0 or 1. Numbers that are not given are 0: `driver<471` is false for 471.0 and true for 470.99."""
    length = max(len(have), len(wanted))
    first, second = (one + (0,) * (length - len(one)) for one in (have, wanted))
    return (first > second) - (first < second)
