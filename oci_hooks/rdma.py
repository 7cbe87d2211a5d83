"""The planner "rdma": verbs libraries that know this node's cards: the image's own where they do, else the host's.

The host's come as one set (libibverbs, librdmacm, the providers and what names them), because parts of two builds do
not load each other; nothing else of the image changes. The nodes of the devices are rules of the module.
"""

from os.path import dirname
from typing import TYPE_CHECKING

from .dependencies import VERBS, Dependencies
from .host_libraries import check_machine, host_glibc, over
from .libraries import Libraries, Library, split_name
from .plan import Contribution, Device
from .preflight import Finding, Findings, Verdict, said, stands_for
from .verbs import IBVERBS, Node, read_node, unfit

if TYPE_CHECKING:
    from .planners import Question

_ALWAYS = (IBVERBS, "librdmacm.so.1")
_MANAGEMENT = ("umad", "issm")


def plan_rdma(question: "Question") -> Contribution:
    """Answer for a module with `planner = "rdma"`."""
    node = read_node(question.host)
    devices = _management(question)
    if not node.cards:
        why = "No verbs device is known on this host: the image's libraries are left as they are."
        return Contribution(devices=devices, rejected=(why,))
    image, host = Libraries(question.image, question.image_env), Libraries(question.host)
    made = _libraries(image, host, node, glibc=host_glibc(question))
    return made._replace(devices=devices, warnings=(*made.warnings, *image.problems, *host.problems))


def _management(question: "Question") -> tuple[Device, ...]:
    """Return the nodes of subnet managers and fabric diagnostics, for those who ask for them."""
    if question.annotations.get(f"squashmount.{question.module.name}.umad") != "on":
        return ()
    folder = "/dev/infiniband"
    try:
        names = [name for name in question.host.listdir(folder) if name.startswith(_MANAGEMENT)]
    except OSError:
        return ()
    return tuple(Device(f"{folder}/{name}") for name in names if question.host.kind(f"{folder}/{name}") == "other")


def _libraries(image: Libraries, host: Libraries, node: Node, *, glibc: bool) -> Contribution:
    ours = next(iter(host.named(IBVERBS)), None)
    theirs = next((one for one in image.named(IBVERBS) if ours is None or one.elf.abi == ours.elf.abi), None)
    cards = ", ".join(card.shown for card in node.cards)
    lacking = unfit(image, theirs, node) if theirs else ["the image has no libibverbs"]
    if not lacking and theirs:
        return Contribution(reasons=(f"{theirs.path} of the image has the providers for {cards}: it stays.",))
    why = "; ".join(lacking)
    worse = unfit(host, ours, node) if ours else ["the host has none"]
    if ours is None or worse:
        text = f"rdma-core of the image cannot use {cards} ({why}), and the host's cannot either ({'; '.join(worse)})."
        return Contribution(missing=(text,)) if theirs else Contribution(rejected=(text,))
    part = _of_host(image, host, ours, glibc=glibc)
    if part.missing and theirs is None:
        # nothing in this image asks for verbs yet: no reason to stop it
        return Contribution(
            rejected=tuple(f"The host's rdma-core is not brought along: {text}" for text in part.missing)
        )
    if part.missing:
        return part._replace(
            missing=tuple(f"rdma-core of the image cannot use {cards} ({why}), and {text}" for text in part.missing)
        )
    return part._replace(reasons=(f"rdma-core is the host's, as one set, for {cards}: {why}.", *part.reasons))


def _of_host(image: Libraries, host: Libraries, ours: Library, *, glibc: bool) -> Contribution:
    found = Findings()
    chosen = _set(image, host, ours, found)
    check_machine(image, chosen, found)
    if not image.named("libc.so.6"):
        evidence = "the image has no libc.so.6 (musl, or nothing but static programs?)"
        found.hard.append(Finding(Verdict.MISSING_DEPENDENCY, ours.path, evidence, ("libc.so.6",)))
    mounts = [] if found.hard else over(image, chosen, found)
    placed = Dependencies(image, host, [], [], found, extra=chosen, host_glibc=glibc).place()
    if found.hard:
        return Contribution(missing=said(found.hard), warnings=tuple(found.warnings))
    return Contribution(
        mounts=(*mounts, *placed.mounts),
        env_prepend=dict(placed.env_prepend),
        env_set=dict(placed.env_set),
        reasons=tuple(found.reasons),
        rejected=tuple(found.rejected),
        warnings=tuple(found.warnings),
    )


def _set(image: Libraries, host: Libraries, ours: Library, found: Findings) -> tuple[Library, ...]:
    """Return the host's libraries of the set: those that the image has too, and what is always needed."""
    chosen = {ours.name: ours}
    places = (dirname(ours.path), *image.defaults, *image.path)
    names = {name for folder in places for name in _names(image, folder) if VERBS.fullmatch(split_name(name)[0])}
    for name in (*_ALWAYS, *sorted(names)):
        library = next((one for one in host.named(name) if one.elf.abi == ours.elf.abi), None)
        if library:
            chosen[library.name] = library
        own = next((one for one in image.named(name) if one.elf.abi == ours.elf.abi), None)
        if own and library and not stands_for(library, own):
            evidence = f"{own.path} of the image is newer, and programs may need what it has besides"
            found.hard.append(Finding(Verdict.ABI_MISMATCH, library.path, evidence, (name,)))
        elif own and library is None and own.name == name:
            found.warnings.append(f"{own.path} of the image stays: the host has no {name}. It may not load.")
    return tuple(chosen.values())


def _names(libraries: Libraries, folder: str) -> list[str]:
    try:
        return libraries.tree.listdir(folder)
    except OSError:
        return []
