"""The planner "glibc": the host's C library in the place of an older one, as one set with its loader, or not at all.

Programs made for an older glibc run with a newer one (its promise: symbol versions are never taken away), but parts of
two releases must never meet in one process: they share private symbols (GLIBC_PRIVATE). Therefore all files of the
family that the image has are replaced together, and nothing happens unless every one of them is proven to fit.
"""

from os.path import basename, dirname, join
from typing import TYPE_CHECKING

from .elf import Elf
from .libraries import Libraries, Library, is_glibc
from .plan import Contribution, Mount

if TYPE_CHECKING:
    from .planners import Question

LIBC = "libc.so.6"

_ALWAYS = ("libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libresolv.so.2", "libutil.so.1")
_SOMETIMES = (
    *("libanl.so.1", "libmvec.so.1", "libnsl.so.1", "libthread_db.so.1", "libBrokenLocale.so.1"),
    *("libnss_files.so.2", "libnss_dns.so.2", "libnss_compat.so.2", "libnss_hesiod.so.2"),
    *("libc_malloc_debug.so.0", "libmemusage.so", "libpcprofile.so", "libSegFault.so"),
)
_PRIVATE = "GLIBC_PRIVATE"
_PREFIX = "GLIBC_"


class _UnfitError(Exception):
    """Why the set cannot be put into this image."""


def plan_glibc(question: "Question") -> Contribution:
    """Answer for a module with `planner = "glibc"`."""
    image, host = Libraries(question.image, question.image_env), Libraries(question.host)
    return plan_for(image, host)


def plan_for(image: Libraries, host: Libraries) -> Contribution:
    """Plan to replace the image's C library. An image whose own is as new needs nothing; one that cannot is missing."""
    ours = next(iter(host.named(LIBC)), None)
    if ours is None:
        return Contribution(missing=(f"The host has no {LIBC}.",))
    copies = _copies(image, LIBC, ours.elf)
    if not copies:
        return Contribution(
            rejected=(f"The image has no {LIBC} for {ours.elf.abi_name}: its C library is left alone.",)
        )
    theirs = copies[0]
    mine, other = (release(tree, libc) for tree, libc in ((host, ours), (image, theirs)))
    if mine <= other:
        newer = f"glibc {shown(other)} of the image is not older than the host's {shown(mine)}"
        return Contribution(rejected=(f"{newer}: nothing is replaced.",))
    try:
        mounts = _mounts(image, host, ours, theirs)
    except _UnfitError as unfit:
        return Contribution(missing=(f"The host's C library cannot be put into the image: {unfit}.",))
    what = f"The host's glibc {shown(mine)} takes the place of {shown(other)} of the image"
    return Contribution(mounts=tuple(mounts), reasons=(f"{what}: {len(mounts)} mounts, the loader too.",))


def release(libraries: Libraries, libc: Library) -> tuple[int, ...]:
    """Return the release of a C library: the newest symbol version that it or a part of it defines, (2, 36)."""
    parts = [part for name in _ALWAYS for part in _copies(libraries, name, libc.elf)[:1]]
    versions = {version for one in (libc, *parts) for version in one.elf.versions_defined}
    numbers = [version.removeprefix(_PREFIX).split(".") for version in versions]
    return max((tuple(map(int, digits)) for digits in numbers if all(map(str.isdecimal, digits))), default=())


def shown(release: tuple[int, ...]) -> str:
    """Return a release for people."""
    return ".".join(map(str, release)) or "of unknown release"


def _copies(image: Libraries, name: str, like: Elf) -> list[Library]:
    """Return the image's files of that name for our machine, each once."""
    return [library for library in image.named(name) if library.elf.abi == like.abi]


def _mounts(image: Libraries, host: Libraries, ours: Library, theirs: Library) -> list[Mount]:
    _check_search_path(image, ours, theirs)
    loader = _loader(host, ours)
    if _loader(image, theirs).elf.soname != loader.elf.soname:
        raise _UnfitError(f"its loader is not {loader.elf.soname}")
    mounts = _over(image, ours, LIBC) + _over(image, loader, loader.elf.soname)
    for name in (*_ALWAYS, *_SOMETIMES):
        library = next((one for one in host.named(name) if one.elf.abi == ours.elf.abi), None)
        if library:
            mounts += _over(image, library, name)
        elif name in _ALWAYS and _copies(image, name, ours.elf):
            raise _UnfitError(f"the host has no {name}")
    mounts += _needed_besides(image, host, mounts, dirname(theirs.real))
    gconv = join(dirname(ours.real), "gconv")
    if host.tree.kind(gconv) == "dir":
        # its parts use private symbols, too; the C library knows this path
        mounts.append(Mount(gconv, gconv, create="dir"))
    return list({mount.target: mount for mount in mounts}.values())


def _check_search_path(image: Libraries, ours: Library, theirs: Library) -> None:
    # the host's loader has the host's default directories compiled in: without a cache it may look in others
    known = {image.tree.resolve(dirname(ours.real)), image.tree.resolve(dirname(ours.path))}
    if not image.cached(LIBC) and dirname(theirs.real) not in known:
        raise _UnfitError(f"the host's loader would not look in {dirname(theirs.real)}, and there is no ld.so.cache")


def _loader(libraries: Libraries, libc: Library) -> Library:
    for name in libc.elf.needed:
        if is_glibc(name) and (found := libraries.find(name, wanted_by=libc)):
            return found
    raise _UnfitError(f"the loader of {libc.path} was not found")


def _over(image: Libraries, library: Library, name: str) -> list[Mount]:
    """Return mounts over every copy of one file; _UnfitError when a copy offers what the host's does not."""
    mounts = []
    for copy in _copies(image, name, library.elf):
        gone = set(copy.elf.versions_defined) - set(library.elf.versions_defined) - {_PRIVATE}
        if gone:
            raise _UnfitError(f"{copy.path} has {', '.join(sorted(gone))}, which the host's {library.path} lacks")
        mounts.append(Mount(library.real, copy.real, create="none"))
    return mounts


def _needed_besides(image: Libraries, host: Libraries, mounts: list[Mount], folder: str) -> list[Mount]:
    """Return mounts of members that only the host's release has, where the image's C library lies."""
    more: dict[str, Mount] = {}
    for mount in mounts:
        library = host.load(mount.source)
        for name in library.elf.needed if library else ():
            if library and is_glibc(name) and not _copies(image, name, library.elf):
                other = host.find(name, wanted_by=library)
                if other is None:
                    raise _UnfitError(f"the host has no {name}, which {basename(mount.source)} needs")
                more[name] = Mount(other.real, join(folder, name), create="file")
    return list(more.values())
