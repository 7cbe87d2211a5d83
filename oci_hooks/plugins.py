"""Where libraries go that are asked for by the name of their file: plugins of NCCL, providers of libfabric."""

import re
from collections.abc import Iterable, Sequence
from os.path import basename, dirname, join

from .libraries import Libraries, Library
from .plan import PRIVATE, Mount

_LIBFABRIC = "libfabric.so.1"
_PROVIDERS = join(PRIVATE, "libfabric")


def newest(libraries: Iterable[Library]) -> tuple[Library, ...]:
    """Return one library of each SONAME: of those a pattern fits, the one in the path of the highest numbers."""
    ordered = sorted(libraries, key=lambda one: _natural(one.path))
    return tuple({one.elf.soname or basename(one.path): one for one in ordered}.values())


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def by_file_name(libraries: Iterable[Library], mounts: Sequence[Mount]) -> list[Mount]:
    """Return the mounts that are lacking: dlopen asks for libnccl-net.so, whatever its SONAME."""
    there = {mount.target for mount in mounts}
    every = (Mount(one.real, join(PRIVATE, basename(one.path)), create="file") for one in libraries)
    return [mount for mount in every if mount.source in {one.source for one in mounts} and mount.target not in there]


def providers(
    found: Iterable[Library], image: Libraries, mounts: Sequence[Mount]
) -> tuple[list[Mount], dict[str, str]]:
    """Return mounts where the libfabric that will be used looks for providers, and what tells it (fabric(7))."""
    own = image.named(_LIBFABRIC)
    replaced = any(mount.target == join(PRIVATE, _LIBFABRIC) for mount in mounts)
    folder = _PROVIDERS if replaced or not own else join(dirname(own[0].real), "libfabric")
    made = [Mount(one.real, join(folder, basename(one.path)), create="file") for one in found]
    return made, ({"FI_PROVIDER_PATH": folder} if made and folder == _PROVIDERS else {})
