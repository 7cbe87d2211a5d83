"""Which verbs providers a node needs, and whether a tree's rdma-core has them: nothing is decided here.

libibverbs loads `libNAME-rdmavNN.so` for every NAME in /etc/libibverbs.d, where NN is the number of its own private
ABI, and gives a card to the provider that knows its driver and the driver's ABI version. A card that no provider takes
is not there for programs, and most of them then go on over TCP in silence (rdma-core, libibverbs/init.c).
"""

import re
import struct
from dataclasses import dataclass
from os.path import basename, dirname, join
from typing import TYPE_CHECKING

from .elf import NotElfError, read_entries
from .libraries import Libraries, Library

if TYPE_CHECKING:
    from .tree import Tree

IBVERBS = "libibverbs.so.1"
DRIVERS = "/etc/libibverbs.d"
SYSFS = "/sys/class/infiniband_verbs"

_PROVIDERS = {
    "mlx5_core": "mlx5",
    "mlx4_core": "mlx4",
    "bnxt_en": "bnxt_re",
    "ice": "irdma",
    "i40e": "irdma",
    "idpf": "irdma",
    "hfi1": "hfi1verbs",
    "ib_qib": "ipathverbs",
    "hns3": "hns",
    "hns_roce_hw_v2": "hns",
    "ib_mthca": "mthca",
    "be2net": "ocrdma",
    "qede": "qedr",
}
"""The kernel driver of the card (which may be that of its Ethernet side) and the provider, where the names differ."""
_SOFTWARE = ("rxe", "siw")
"""Without a card: the devices are named after the provider (rdma-link(8) takes any name, this is the custom)."""

_KERNEL_ABI = range(3, 7)  # IB_USER_VERBS_MIN_ABI_VERSION, _MAX_; the kernel says 6 since 2005
_BY_DRIVER = 22
"""The first private ABI whose libibverbs asks the kernel for the driver; before, only listed PCI numbers are known."""
_MOST_FILES = 200
_PRIVATE = re.compile(r"IBVERBS_PRIVATE_(\d{1,4})")


@dataclass(frozen=True)
class Card:
    """One verbs device: `provider` is whom its driver needs ("" when that cannot be told), `abi` its driver's ABI."""

    name: str
    driver: str
    provider: str
    abi: int | None

    @property
    def shown(self) -> str:
        """The card for a sentence."""
        return f"{self.name} ({self.driver or 'driver unknown'})"


@dataclass(frozen=True)
class Node:
    """The verbs devices a job can use on this node, and the kernel's ABI of uverbs (None: unknown)."""

    cards: tuple[Card, ...] = ()
    abi: int | None = None


def read_node(host: "Tree") -> Node:
    """Return the devices of a host whose uverbs nodes are there.

    Linux, Documentation/ABI/stable/sysfs-class-infiniband.
    """
    try:
        names = [name for name in host.listdir(SYSFS) if name.startswith("uverbs")]
    except OSError:
        return Node()
    there = [name for name in names if host.kind(f"/dev/infiniband/{name}") == "other"]
    return Node(tuple(_card(host, f"{SYSFS}/{name}") for name in there), _number(host, f"{SYSFS}/abi_version"))


def _card(host: "Tree", folder: str) -> Card:
    name = _text(host, f"{folder}/ibdev") or basename(folder)
    driver = basename(host.resolve(f"{folder}/device/driver") or "")
    if not driver:
        driver = next((kind for kind in _SOFTWARE if name.startswith(kind)), "")
    return Card(name, driver, _PROVIDERS.get(driver, driver), _number(host, f"{folder}/abi_version"))


def unfit(libraries: Libraries, library: Library, node: Node) -> list[str]:
    """Return why a tree's libibverbs could not use the cards of a node; nothing when it can, or nobody can tell."""
    if node.abi is not None and node.abi not in _KERNEL_ABI:
        return [f"{library.path} speaks the uverbs ABI 3 to 6, and the kernel {node.abi}"]
    private = max(
        (int(match[1]) for name in library.elf.versions_defined if (match := _PRIVATE.fullmatch(name))), default=0
    )
    if private < _BY_DRIVER and node.cards:
        which = f"private ABI {private}" if private else "older than rdma-core"
        return [f"{library.path} is too old ({which}) to know cards by their driver"]
    return [why for card in node.cards if card.provider and (why := _lacking(libraries, library, card, private))]


def _lacking(libraries: Libraries, library: Library, card: Card, private: int) -> str:
    name = f"lib{card.provider}-rdmav{private}.so"
    provider = libraries.load(join(dirname(library.real), "libibverbs", name)) or libraries.find(
        name, wanted_by=library
    )
    if provider is None:
        return f"{name}, the provider for {card.shown}, is not there"
    if provider.elf.abi != library.elf.abi:
        return f"{provider.path} is for {provider.elf.abi_name}"
    gone = libraries.closure([provider]).missing
    if gone:
        return f"{provider.path} needs {gone[0][0]}, which is not there"
    configured = (DRIVERS, join(dirname(dirname(library.real)), "etc/libibverbs.d"))
    if not any(card.provider in _configured(libraries.tree, folder) for folder in configured):
        return f"{DRIVERS} does not name the provider {card.provider} for {card.shown}"
    known = abi_of(libraries, provider, card.provider)
    if known and card.abi is not None and not known[0] <= card.abi <= known[1]:
        return f"{provider.path} knows the driver's ABI {known[0]} to {known[1]}, and {card.shown} has {card.abi}"
    return ""


def abi_of(libraries: Libraries, provider: Library, name: str) -> tuple[int, int] | None:
    """Return the versions of its driver's ABI that a provider speaks; None when its file does not show it.

    They stand behind its name in its struct verbs_device_ops (rdma-core, libibverbs/driver.h).
    """
    try:
        for text in (name, name.removesuffix("verbs"), name.removeprefix("vmw_")):
            with libraries.tree.open(provider.real) as file:
                for entry in read_entries(file, text, 8):
                    least, most = struct.unpack("<II" if provider.elf.little_endian else ">II", entry)
                    if least <= most < 1 << 31:
                        return least, most
    except (NotElfError, OSError) as error:
        libraries.problems.append(f"{provider.real!r}: {error}".replace("\n", " "))
    return None


def _configured(tree: "Tree", folder: str) -> set[str]:
    """Return the providers that the files of a directory name: lines `driver NAME` (libibverbs/init.c, read_config)."""
    try:
        names = tree.listdir(folder)
    except OSError:
        return set()
    lines = [line.split() for name in names[:_MOST_FILES] for line in _text(tree, join(folder, name)).splitlines()]
    return {basename(words[1]).removeprefix("lib") for words in lines if len(words) > 1 and words[0] == "driver"}


def _number(tree: "Tree", path: str) -> int | None:
    text = _text(tree, path)
    return int(text) if text.isascii() and text.isdigit() else None


def _text(tree: "Tree", path: str) -> str:
    try:
        with tree.open(path) as file:
            return file.read(65536).decode(errors="replace").strip()
    except OSError:
        return ""
