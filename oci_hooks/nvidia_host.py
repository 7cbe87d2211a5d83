"""The NVIDIA GPUs of a node and its driver: what /proc and /dev show, and what the vendor's programs add to it.

Sources: /proc/driver/nvidia (driver README, "Proc interface"), MIG user guide ("Device nodes and capabilities").
Unless a program of root's has used a GPU, /proc may hide its UUID (question marks).
"""

import re

from squashmount.lean import TYPE_CHECKING, Callable, NamedTuple

from . import cuda, mig, nvidia_parts
from .gpu import Gpu
from .listing import names_in

if TYPE_CHECKING:
    from .tree import Tree

_PROC = "/proc/driver/nvidia"
_INFO = re.compile(r"^Device Minor:\s*(\d+)$.*?^GPU UUID:\s*(GPU-[\w-]+)$", re.MULTILINE | re.DOTALL)
_NVRM = re.compile(r"^NVRM version:\s*([\d.]+)$", re.MULTILINE)
_LIST = re.compile(r"^GPU (\d+): .*\(UUID: (GPU-[\w-]+)\)", re.MULTILINE)


class Host(NamedTuple):
    """The GPUs of a node and its driver. `mig` is GPU number -> instance ("gi/ci", "" for the gi) -> device node."""

    gpus: tuple[Gpu, ...]
    driver: str
    mig: dict[int, dict[str, str]]


def read_host(host: "Tree") -> Host:
    """Return the GPUs in the order of their PCI addresses, with UUIDs where the driver shows them."""
    found = []
    for address in names_in(host, f"{_PROC}/gpus"):
        facts = _fields(host, f"{_PROC}/gpus/{address}/information")
        if facts.get("Device Minor", "").isdigit():
            found.append((address, int(facts["Device Minor"]), facts.get("GPU UUID", "")))
    if not found:
        digits = [name.removeprefix("nvidia") for name in names_in(host, "/dev") if name.startswith("nvidia")]
        found = [("", number, "") for number in sorted(int(digit) for digit in digits if digit.isdigit())]
    gpus = tuple(
        Gpu(index, number, uuid if uuid.startswith("GPU-") and "?" not in uuid else "", (f"/dev/nvidia{number}",))
        for index, (_, number, uuid) in enumerate(found)
        if host.kind(f"/dev/nvidia{number}") == "other"
    )
    return Host(gpus, _driver(host), {gpu.number: _instances(host, gpu.number) for gpu in gpus})


def _driver(host: "Tree") -> str:
    words = _text(host, f"{_PROC}/version").split("\n", 1)[0].split()
    found = next((word for word in words if len(cuda.version(word)) > 1), "")
    if not found:
        found = _text(host, "/sys/module/nvidia/version").strip()
    return found or nvidia_parts.version_of_libcuda(host)


def _instances(host: "Tree", number: int) -> dict[str, str]:
    """Return the MIG instances of a GPU that exist now, with the node that gives access to each."""
    top = f"{_PROC}/capabilities/gpu{number}/mig"
    found = {}
    for name in names_in(host, top):
        places = [(name, f"{top}/{name}")]
        places += [(f"{name}/{inner}", f"{top}/{name}/{inner}") for inner in names_in(host, f"{top}/{name}")]
        for instance, place in places:
            minor = _fields(host, f"{place}/access").get("DeviceFileMinor", "")
            if minor.isdigit():
                found[instance] = f"/dev/nvidia-caps/nvidia-cap{minor}"
    return found


def completed(host: Host, say: Callable[[tuple[str, ...]], str]) -> Host:
    """Return the node with the UUIDs and the driver's version that /proc did not show. `say` runs a vendor's program.

    nvidia-container-cli names GPUs by their device files, nvidia-smi -L in the order of their PCI addresses.
    """
    info = say(nvidia_parts.INFO)
    driver = host.driver or next(iter(_NVRM.findall(info)), "")
    by_number = {int(number): uuid for number, uuid in _INFO.findall(info)}
    by_order: dict[int, str] = {}
    if any(not gpu.uuid and gpu.number not in by_number for gpu in host.gpus):
        by_order = {int(order): uuid for order, uuid in _LIST.findall(say((mig.SMI, "-L")))}
    gpus = tuple(
        gpu._replace(uuid=gpu.uuid or by_number.get(gpu.number) or by_order.get(gpu.order, "")) for gpu in host.gpus
    )
    return host._replace(gpus=gpus, driver=driver)


def _text(tree: "Tree", path: str) -> str:
    try:
        with tree.open(path) as file:
            return file.read(65536).decode(errors="replace")
    except OSError:
        return ""


def _fields(tree: "Tree", path: str) -> dict[str, str]:
    """Read `Name: value` lines."""
    lines = (line.partition(":") for line in _text(tree, path).splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
