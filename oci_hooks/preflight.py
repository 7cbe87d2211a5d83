"""Whether host libraries can work in an image, judged before the container starts, with the evidence.

What the dynamic loader would refuse is refused here, in the same terms: the machine, DT_NEEDED names nobody has, symbol
versions the image's C library does not define. What it would accept and get wrong is judged too: an older library in
the place of a newer one, and run paths that lead past what we inject.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from os.path import basename

from .elf import NotElfError, Symbols, read_symbols
from .libraries import Libraries, Library, is_glibc, split_name

_NAMED = 8


class Verdict(StrEnum):
    """What is wrong, or that nothing is."""

    FINE = "fine"
    NEWER_GLIBC = "newer-glibc"
    WRONG_MACHINE = "wrong-machine"
    MISSING_DEPENDENCY = "missing-dependency"
    PINNED_BY_RPATH = "pinned-by-rpath"
    ABI_MISMATCH = "abi-mismatch"
    DOWNGRADE = "downgrade"


@dataclass(frozen=True)
class Finding:
    """The verdict on one host library; `missing` are the exact symbol versions, symbols or libraries it is about."""

    verdict: Verdict
    library: str
    evidence: str
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.library}: {self.verdict}: {self.evidence}"


@dataclass
class Findings:
    """What came up on the way to a plan: what forbids it, what the policy judges, and sentences for people."""

    hard: list[Finding] = field(default_factory=list)
    policy: list[Finding] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def symbols_of(libraries: Libraries, library: Library) -> Symbols:
    """Return a library's symbols; none when they cannot be read, which is noted as a problem."""
    try:
        with libraries.tree.open(library.real) as file:
            return read_symbols(file)
    except (NotElfError, OSError) as error:
        libraries.problems.append(f"{library.real!r}: {error}".replace("\n", " "))
        return Symbols(frozenset(), {})


def check_versions(host: Libraries, library: Library, provider: Callable[[str], Library | None]) -> Finding | None:
    """Compare the symbol versions a host library needs with those of the libraries it will meet in the container.

    `provider` returns what will be loaded for a name. None: all are there. ld.so's rule: a library without any version
    definitions satisfies every need.
    """
    for name in library.elf.needed:
        if is_glibc(name) and provider(name) is None:
            return Finding(Verdict.MISSING_DEPENDENCY, library.path, f"the image has no {name} (musl?)", (name,))
    for glibc in (True, False):
        lacking: list[str] = []
        where = ""
        for name, versions in library.elf.versions_needed.items():
            if is_glibc(name) is not glibc:
                continue
            found = provider(name)
            if found is None:
                continue
            defined = found.elf.versions_defined
            gone = [version for version in versions if defined and version not in defined]
            if gone:
                lacking += gone
                whose = "the host's" if host.has(found) else "the image's"
                where = where or f"{whose} {found.path} ({_newest(defined)})"
        if lacking:
            lacking.sort(key=_order)
            evidence = f"needs {_with_symbols(host, library, lacking)}, which {where} does not have"
            verdict = Verdict.NEWER_GLIBC if glibc else Verdict.MISSING_DEPENDENCY
            return Finding(verdict, library.path, evidence, tuple(lacking))
    return None


def check_machine(library: Library, other: Library) -> Finding | None:
    """Return a finding when two libraries cannot be in one process."""
    if library.elf.abi == other.elf.abi:
        return None
    evidence = f"is for {library.elf.abi_name}, the image's {other.path} for {other.elf.abi_name}"
    return Finding(Verdict.WRONG_MACHINE, library.path, evidence)


def check_missing(missing: Iterable[tuple[str, Library]]) -> list[Finding]:
    """Return a finding for every name that not even the host has."""
    return [
        Finding(Verdict.MISSING_DEPENDENCY, library.path, f"needs {name}, which is not on this host", (name,))
        for name, library in missing
    ]


def same_build(one: Library, other: Library) -> bool:
    """Return whether two files are the same build (NT_GNU_BUILD_ID)."""
    return one.elf.build_id != "" and one.elf.build_id == other.elf.build_id


def stands_for(one: Library, other: Library) -> bool:
    """Return whether programs made for `other` can use `one`: it has every symbol version, or as high a number.

    libtool and glibc libraries with one SONAME are compatible backwards, never forwards. Private versions are for
    the parts of one build.
    """
    promised = {version for version in other.elf.versions_defined if "PRIVATE" not in version}
    if promised:
        return promised <= set(one.elf.versions_defined)
    stem, numbers = split_name(basename(one.real))
    other_stem, other_numbers = split_name(basename(other.real))
    return stem != other_stem or numbers >= other_numbers


def satisfies(library: Library, name: str, users: Iterable[Library]) -> bool:
    """Return whether a library has every symbol version that `users` ask of `name`."""
    defined = library.elf.versions_defined
    return not defined or all(set(user.elf.versions_needed.get(name, ())) <= set(defined) for user in users)


def said(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return findings as sentences. One C library that is too old is one sentence, not one for every library."""
    rest: list[Finding] = []
    old: list[Finding] = []
    for finding in findings:
        (old if finding.verdict is Verdict.NEWER_GLIBC else rest).append(finding)
    if not old:
        return tuple(map(str, rest))
    also = f"; so do {listed(basename(finding.library) for finding in old[1:])}" if old[1:] else ""
    return (f"{old[0]}{also} (--annotation squashmount.glibc=on brings the host's along)", *map(str, rest))


def listed(names: Iterable[str]) -> str:
    """Return names for a sentence: the first ones, and how many more."""
    known = list(names)
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return ", ".join(known[:_NAMED]) + more


def _with_symbols(host: Libraries, library: Library, versions: list[str]) -> str:
    undefined = symbols_of(host, library).undefined
    parts = []
    for version in dict.fromkeys(versions):
        users = sorted(name for name, wanted in undefined.items() if wanted == version)
        parts.append(f"{version} ({listed(users)})" if users else version)
    return ", ".join(parts)


def _order(version: str) -> tuple[str, list[int]]:
    name, _, numbers = version.rpartition("_")
    return name, [int(part) for part in numbers.split(".") if part.isascii() and part.isdigit()]


def _newest(versions: tuple[str, ...]) -> str:
    numbered = [version for version in versions if _order(version)[1]]
    return f"up to {max(numbered, key=_order)}" if numbered else "no versions"
