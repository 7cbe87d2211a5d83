"""The planner "mpich": the host's MPI in the place of the container's, wherever the MPICH ABI allows it.

The MPICH ABI (https://www.mpich.org/abi/): MPICH 3.1 and newer, Intel MPI, MVAPICH2 and Cray MPICH offer libmpi.so.12,
libmpicxx.so.12 and libmpifort.so.12 that can replace each other; libtool's second number grows with what is added, so
the host's must not be smaller. Debian calls them libmpich.so.12, Cray puts a link of that name in front of its own. The
standard ABI of MPI 5 is libmpi_abi.so.0, of whatever implementation.

The host's files are bound over every copy in the image, so that run paths and links inside keep working.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import basename, dirname
from typing import TYPE_CHECKING

from .dependencies import Dependencies, Placed
from .elf import Symbols
from .gtl import layers, preloaded
from .host_libraries import host_glibc as glibc_is_injected
from .host_libraries import host_libraries
from .libraries import Libraries, Library, split_name
from .plan import Contribution, Mount
from .plugins import newest
from .preflight import Finding, Findings, Verdict, check_machine, listed, said, symbols_of

if TYPE_CHECKING:
    from .planners import Question

MPICH_MAJOR = 12

_OPEN_MPI = re.compile(r"libmpi_(mpifh|cxx|java|usempi\w*)|libopen-(rte|pal)|liboshmem")
_OPEN_MPI_MAJORS = frozenset({20, 40, 80})
_ROLES = {
    "abi": re.compile(r"libmpi_abi"),
    "c++": re.compile(r"libmpi(ch)?cxx(_\w+)?"),
    "fortran": re.compile(r"(libmpi(ch)?(fort|f90|f)|libfmpich)(_\w+)?"),
    "c": re.compile(r"libmpi(ch)?(_\w+)?"),
}
_PUBLIC = re.compile(r"P?MPI_[A-Z]\w*")
_BINDING = re.compile(r"_*p?mpix?_\w+|_Z\w*3MPI\w*", re.IGNORECASE)
_PROMISED = re.compile(r"p?mpi_(?!\w*(f08|cptr))[a-z0-9_]+_|_Z\w*3MPI\w*")
"""What the MPICH ABI covers of them: mpif.h and C++, not the modules, whose names are the compiler's."""


@dataclass(frozen=True)
class MpiCopy:
    """One MPI library file with all names that lead to it. `numbers` are libtool's, as far as its names tell."""

    library: Library
    names: frozenset[str]
    role: str
    family: str
    numbers: tuple[int, ...]

    @property
    def shown(self) -> str:
        """The path and version for a sentence."""
        return f"{self.library.path} ({basename(self.library.real)})"


def is_mpi(name: str) -> bool:
    """Return whether a file name is one of an MPI library."""
    stem, _ = split_name(name)
    return bool(stem) and (any(role.fullmatch(stem) for role in _ROLES.values()) or bool(_OPEN_MPI.fullmatch(stem)))


def mpi_copies(found: Iterable[Library]) -> list[MpiCopy]:
    """Group libraries by file and tell what each is."""
    groups: dict[str, list[Library]] = {}
    for library in found:
        groups.setdefault(library.real, []).append(library)
    return [_copy(group) for group in groups.values()]


def _copy(group: list[Library]) -> MpiCopy:
    first = group[0]
    names = {basename(path) for library in group for path in (library.path, library.real)} | {first.elf.soname}
    split = [split_name(name) for name in sorted(names)]
    roles = [(role, numbers) for stem, numbers in split for role in [_role(stem)] if role]
    majors = {numbers[0] for _, numbers in roles if numbers}
    needed = {split_name(name)[0] for name in first.elf.needed}
    if any(_OPEN_MPI.fullmatch(stem) for stem in needed | {stem for stem, _ in split}) or majors & _OPEN_MPI_MAJORS:
        # Open MPI 1.10 is libmpi.so.12, too: what it needs gives it away
        family = "openmpi"
    elif any(role == "abi" for role, _ in roles):
        family = "abi"
    else:
        family = "mpich" if MPICH_MAJOR in majors else "other"
    # Cray: libmpi.so.12 -> libmpich_gnu_71.so.3.0.1. The name programs ask for says what it is compatible with
    wanted = [numbers for _, numbers in roles if numbers and (family != "mpich" or numbers[0] == MPICH_MAJOR)]
    return MpiCopy(first, frozenset(names), roles[0][0] if roles else "", family, max(wanted, key=len, default=()))


def _role(stem: str) -> str:
    if _OPEN_MPI.fullmatch(stem):
        return ""
    return next((role for role, pattern in _ROLES.items() if pattern.fullmatch(stem)), "")


def plan_mpich(question: "Question") -> Contribution:
    """Answer for a module with `planner = "mpich"`; its primary libraries are the host's MPI, in order of preference.

    Without any the loader's are taken. `--annotation squashmount.mpi=mpich` asks for it: then an image that cannot have
    it is an error for the policy to judge; otherwise (auto) it is left alone.
    """
    from .fabric import agreed  # noqa: PLC0415 - it asks this planner what it starts from
    from .launch import no_pmi, shared  # noqa: PLC0415 - the same

    image, host = Libraries(question.image, question.image_env), Libraries(question.host)
    rules = host_libraries(question, host)
    if rules.missing:
        return Contribution(missing=rules.missing)
    common = agreed(question, host)
    host.preferred = common.libraries
    mpi = host_mpi(question, host)
    gpu = layers(question, image, host, mpi)
    part = plan_mpi(
        image,
        host,
        mpi,
        mismatch=question.policy.mpi_mismatch,
        required=question.annotations.get("squashmount.mpi") == "mpich",
        by_pmix="PMIX_VERSION" in question.environ,
        host_glibc=glibc_is_injected(question),
        extra=common.instead(newest((*rules.others, *gpu))),
    )
    if not part.mounts:
        return part
    more = preloaded(question, gpu, mpi)
    speaks_pmix = any(needed.startswith("libpmix.") for library in mpi for needed in library.elf.needed)
    return part._replace(
        needs=shared(question.environ),
        warnings=(*part.warnings, *no_pmi(question.environ, pmix=speaks_pmix, pmi=True)),
        env_prepend={**part.env_prepend, **more.env_prepend},
        reasons=(*part.reasons, *more.reasons, *common.reasons(mount.source for mount in part.mounts)),
        rejected=(*part.rejected, *more.rejected),
    )


def host_mpi(question: "Question", host: Libraries) -> list[Library]:
    """Return the host's MPI libraries of the MPICH ABI: the primary ones of the module, or all the loader knows."""
    rules = host_libraries(question, host)
    found = rules.primaries if question.module.libraries else host.copies(is_mpi, walk=False)
    fitting = {copy.library.real for copy in mpi_copies(found) if copy.family in {"mpich", "abi"}}
    return [library for library in found if library.real in fitting]


def plan_mpi(
    image: Libraries,
    host: Libraries,
    host_mpi: Iterable[Library],
    *,
    mismatch: str = "error",
    required: bool = False,
    by_pmix: bool = False,
    host_glibc: bool = False,
    extra: tuple[Library, ...] = (),
) -> Contribution:
    """Plan the swap. `host_mpi` are the host's libraries in the order of preference, `extra` what comes along.

    `mismatch` says what an older host MPI is (error, warn); `required`: an image without fitting MPI is an error for
    the policy to judge; `by_pmix`: the job was started by PMIx; `host_glibc`: the host's C library will be in the
    container.
    """
    found = Findings()
    ours = [copy for copy in mpi_copies(host_mpi) if copy.family in {"mpich", "abi"}]
    theirs = _replaceable(image, found, open_mpi_first=by_pmix and not required)
    if not theirs:
        missing = tuple(found.rejected) if required else ()
        return Contribution(rejected=tuple(found.rejected), missing=missing)
    if not ours:
        why = "The host has no MPI library of the MPICH ABI (libmpi.so.12): nothing can be put into the container."
        return Contribution(rejected=tuple(found.rejected), missing=(why,))
    pairs = _Pairing(image, host, ours, theirs, found).pairs()
    placed = Placed()
    if pairs:
        primaries = list({new.library.real: new.library for _, new in pairs}.values())
        targets = [old.library for old, _ in pairs]
        placed = Dependencies(image, host, primaries, targets, found, extra=extra, host_glibc=host_glibc).place()
    return _contribution(pairs, placed, found, mismatch=mismatch, problems=[*image.problems, *host.problems])


def _replaceable(image: Libraries, found: Findings, *, open_mpi_first: bool) -> list[MpiCopy]:
    theirs: list[MpiCopy] = []
    copies = mpi_copies(image.copies(is_mpi))
    for copy in copies:
        if copy.family == "openmpi":
            if copy.role == "c":
                found.rejected.append(
                    f"{copy.shown} is Open MPI: the MPICH ABI does not fit it, so it is left alone "
                    "(the module openmpi-pmix or openmpi-pmi2 lets it start under the host's job manager)."
                )
        elif copy.family == "other":
            found.rejected.append(f"{copy.shown} is left alone: {copy.library.elf.soname} is not of the MPICH ABI.")
        else:
            theirs.append(copy)
    if not copies:
        found.rejected.append(
            "The image has no MPI library: there is nothing to replace (what is linked in statically keeps it)."
        )
    if open_mpi_first and theirs and any(copy.family == "openmpi" for copy in copies):
        # the host's UCX comes before the image's in LD_LIBRARY_PATH, and may be too old for the image's Open MPI
        found.rejected.append(
            f"{theirs[0].shown} is left alone: PMIx has started this job, so it is for the image's Open MPI "
            "(squashmount.mpi=mpich replaces it all the same)."
        )
        return []
    return theirs


def _contribution(
    pairs: list[tuple[MpiCopy, MpiCopy]], placed: Placed, found: Findings, *, mismatch: str, problems: list[str]
) -> Contribution:
    policy = tuple(map(str, found.policy))
    made = Contribution(
        rejected=tuple(found.rejected),
        missing=said(found.hard),
        errors=policy if mismatch == "error" else (),
        warnings=(*found.warnings, *(() if mismatch == "error" else policy), *problems),
    )
    if made.missing or made.errors:
        return made
    swaps = tuple(Mount(new.library.real, old.library.real, create="none") for old, new in pairs)
    reasons = [f"{new.library.path} takes the place of {old.shown}." for old, new in pairs]
    return made._replace(
        mounts=(*swaps, *placed.mounts),
        env_prepend=dict(placed.env_prepend),
        env_set=dict(placed.env_set),
        reasons=(*reasons, *found.reasons),
    )


@dataclass
class _Pairing:
    """Which host library takes the place of which of the image's."""

    image: Libraries
    host: Libraries
    ours: list[MpiCopy]
    theirs: list[MpiCopy]
    found: Findings

    def __post_init__(self) -> None:
        self._symbols: dict[tuple[int, str], Symbols] = {}

    def pairs(self) -> list[tuple[MpiCopy, MpiCopy]]:
        made: list[tuple[MpiCopy, MpiCopy]] = []
        foreign: list[Finding] = []
        for copy in self.theirs:
            if copy.role not in {"c", "abi"}:
                continue
            candidates = [one for one in self.ours if (one.role, one.family) == (copy.role, copy.family)]
            fitting = [one for one in candidates if one.library.elf.abi == copy.library.elf.abi]
            if fitting:
                chosen = _best(copy, fitting)
                self._check_number(copy, chosen)
                made.append((copy, chosen))
            elif candidates and (finding := check_machine(candidates[0].library, copy.library)):
                foreign.append(finding)
            else:
                evidence = f"the host has nothing in its place ({copy.library.elf.soname} is needed)"
                foreign.append(Finding(Verdict.ABI_MISMATCH, copy.shown, evidence))
        # a second architecture in the image does not stop the first
        if made:
            self.found.rejected += map(str, foreign)
        else:
            self.found.hard += foreign
        return made + self._wrappers(made)

    def _wrappers(self, made: list[tuple[MpiCopy, MpiCopy]]) -> list[tuple[MpiCopy, MpiCopy]]:
        """Pair the C++ and Fortran libraries, which sit between the program and the C library."""
        more = []
        for copy in self.theirs:
            below = [pair for pair in made if pair[0].library.elf.abi == copy.library.elf.abi and pair[0].role == "c"]
            if copy.role in {"c", "abi"} or not below:
                continue
            # the C library beside it, if the image has several
            below.sort(key=lambda pair: dirname(pair[0].library.real) != dirname(copy.library.real))
            old, new = below[0]
            fitting = [
                one for one in self.ours if one.role == copy.role and one.library.elf.abi == copy.library.elf.abi
            ]
            chosen = _best(copy, fitting) if fitting else None
            gone = self._lost(copy, chosen, _BINDING) if chosen else []
            if chosen and not gone:
                more.append((copy, chosen))
                continue
            unmet = self._unmet(copy, old, new)
            if not unmet:
                why = f"the host's lacks {listed(gone)}" if chosen else "the host has none"
                self.found.reasons.append(
                    f"{copy.shown} stays the image's: {why}, and it works with the host's C library."
                )
            elif chosen is None:
                # most images have it and no program of theirs uses it; one that does ends with the loader's message
                self.found.warnings.append(
                    f"{copy.shown} stays the image's, but the host's C library lacks {listed(unmet)}: it may not load."
                )
            else:
                more.append((copy, chosen))
                self._lost_names(copy, chosen, gone)
        return more

    def _lost_names(self, copy: MpiCopy, chosen: MpiCopy, gone: list[str]) -> None:
        promised = [name for name in gone if _PROMISED.fullmatch(name)]
        evidence = f"{copy.shown} has {listed(promised or gone)}, which it lacks"
        finding = Finding(Verdict.ABI_MISMATCH, chosen.library.path, evidence, tuple(promised or gone))
        if promised:
            self.found.policy.append(finding)
        else:
            self.found.warnings.append(str(finding))

    def _check_number(self, copy: MpiCopy, chosen: MpiCopy) -> None:
        lost = self._lost(copy, chosen, _PUBLIC)
        comparable = min(len(copy.numbers), len(chosen.numbers)) > 1 and copy.numbers[0] == chosen.numbers[0]
        if comparable and chosen.numbers[1] >= copy.numbers[1]:
            return
        if not comparable and not lost:
            self.found.reasons.append(
                f"The names of {copy.shown} and {chosen.shown} do not tell which is newer; no function of MPI is lost."
            )
            return
        functions = [name for name in lost if not name.startswith("PMPI_")]
        what = f"{len(functions)} functions are lost ({listed(functions)})" if functions else "no function is lost"
        mine, other = (".".join(map(str, one.numbers)) or "unknown" for one in (chosen, copy))
        evidence = f"the host's ABI version {mine} is older than {other} of {copy.shown}: {what}"
        self.found.policy.append(Finding(Verdict.DOWNGRADE, chosen.library.path, evidence, tuple(functions)))

    def _lost(self, copy: MpiCopy, chosen: MpiCopy, kind: re.Pattern[str]) -> list[str]:
        gone = self._of(self.image, copy).defined - self._of(self.host, chosen).defined
        return sorted(name for name in gone if kind.fullmatch(name))

    def _unmet(self, wrapper: MpiCopy, old: MpiCopy, new: MpiCopy) -> list[str]:
        """Return what a wrapper of the image takes from the image's C library and will not find in the host's."""
        wanted = self._of(self.image, wrapper).undefined.keys() & self._of(self.image, old).defined
        return sorted(wanted - self._of(self.host, new).defined)

    def _of(self, libraries: Libraries, copy: MpiCopy) -> Symbols:
        key = (id(libraries), copy.library.real)
        if key not in self._symbols:
            self._symbols[key] = symbols_of(libraries, copy.library)
        return self._symbols[key]


def _best(copy: MpiCopy, candidates: list[MpiCopy]) -> MpiCopy:
    """Return the candidate with the image's name (a Fortran library of the same compiler), else the first."""
    stem = split_name(basename(copy.library.real))[0]
    return next((one for one in candidates if split_name(basename(one.library.real))[0] == stem), candidates[0])
