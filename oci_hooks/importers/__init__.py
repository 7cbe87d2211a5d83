"""Translate the configuration of podman-hpc, Sarus, Shifter, CSCS' Container Engine and enroot into modules.

Nothing is guessed: what a module cannot say is listed with its line and the reason, and nothing on this machine is
looked at but the files that are named.
"""

import os
from collections.abc import Callable, Sequence

from squashmount.errors import UsageError

from . import edf, enroot, podman_hpc, sarus, shifter
from .draft import Translated, Untranslated

__all__ = ["KINDS", "Translated", "Untranslated", "translate"]

_Translate = Callable[[Sequence[str]], Translated]
# the second part: which files of a directory belong to it
_PEERS: dict[str, tuple[_Translate, tuple[str, ...]]] = {
    "podman-hpc": (podman_hpc.translate, (".yaml",)),
    "sarus": (sarus.translate, (".json",)),
    "shifter": (shifter.translate, (".conf",)),
    "edf": (edf.translate, (".toml",)),
    "enroot": (enroot.translate, (".env", ".fstab", ".sh", ".conf")),
}
KINDS = tuple(_PEERS)


def translate(kind: str, paths: Sequence[str]) -> Translated:
    """Translate files of one kind; of a directory, the files below it that this peer would read.

    UsageError: an unknown kind, nothing to read, a file that is not what it should be.
    """
    if kind not in _PEERS:
        raise UsageError(f"{kind} is not a known source.", details=f"known: {', '.join(KINDS)}")
    function, suffixes = _PEERS[kind]
    files: list[str] = []
    for path in paths:
        files += _below(path, suffixes) if os.path.isdir(path) else [path]
    if not files:
        raise UsageError(f"No file of {kind} in {', '.join(paths)}.", details=f"looked for *{', *'.join(suffixes)}")
    return function(files)


def _below(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    found = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(suffixes)]
    return sorted(found)
