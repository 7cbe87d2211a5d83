"""Instances of divided NVIDIA GPUs (MIG): which of them a job names, in all the forms that there are.

/proc/driver/nvidia/capabilities shows the instances with their nodes, but no UUIDs and no indices: those only the
driver's library knows. `nvidia-smi`, where it is there, is asked for them. Sources: NVIDIA MIG user guide ("Device
nodes and capabilities", "CUDA device enumeration"); nvidia-smi(1), -L and -q -x.
"""

import re

from squashmount.lean import Callable, NamedTuple

from .gpu import Gpu

Run = Callable[..., str]

SMI = "/usr/bin/nvidia-smi"

_GPU_LINE = re.compile(r"GPU \d+: .*\(UUID: (GPU-[\w-]+)\)")
_MIG_LINE = re.compile(r"\s+MIG .*Device\s+(\d+): \(UUID: (MIG-[\w/-]+)\)")
_BY_INDEX = re.compile(r"(nvidia)?(\d+):(?:mig)?(\d+)")


class Listed(NamedTuple):
    """What nvidia-smi says: UUID of an instance -> (UUID of its GPU, index), and (GPU, index) -> "gi1/ci0"."""

    uuids: dict[str, tuple[str, int]]
    places: dict[tuple[str, int], str]


class Wanted(NamedTuple):
    """The instances of one word of a list: GPU (order) -> places ("gi1/ci0"); `uuid` as CUDA reads it, or ""."""

    places: dict[int, list[str]]
    uuid: str = ""
    reason: str = ""
    error: str = ""


def names_instance(token: str) -> bool:
    """Return whether a word names an instance: MIG-UUID, MIG-GPU-UUID/GI/CI, nvidia0:mig1, 0:1."""
    return token.startswith("MIG-") or _BY_INDEX.fullmatch(token) is not None


def ask(run: Run) -> Listed:
    """Ask nvidia-smi. Raises SquashmountError when it cannot be run; what it does not say is missing in the answer."""
    uuids: dict[str, tuple[str, int]] = {}
    places: dict[tuple[str, int], str] = {}
    gpu = ""
    for line in run(SMI, "-L").splitlines():
        if top := _GPU_LINE.match(line):
            gpu = top[1]
        elif below := _MIG_LINE.match(line):
            uuids[below[2]] = (gpu, int(below[1]))
    for text in run(SMI, "-q", "-x").split("<gpu id=")[1:] if uuids else ():
        uuid = next(iter(re.findall(r"<uuid>(GPU-[\w-]+)</uuid>", text)), "")
        for device in text.split("<mig_device>")[1:]:
            numbers = [_number(device, name) for name in ("index", "gpu_instance_id", "compute_instance_id")]
            if "" not in numbers:
                index, gi, ci = numbers
                places[uuid, int(index)] = f"gi{gi}/ci{ci}"
    return Listed(uuids, places)


def _number(text: str, name: str) -> str:
    found = re.search(rf"<{name}>(\d+)</{name}>", text)
    return found[1] if found else ""


def find(token: str, gpus: tuple[Gpu, ...], existing: dict[int, list[str]], listed: Listed, why_not: str) -> Wanted:
    """Return what one word means. `existing` are the places by GPU (order); `why_not`: why nvidia-smi said nothing."""
    parent, _, place = token.removeprefix("MIG-").partition("/")
    of = [gpu for gpu in gpus if gpu.uuid == parent]
    if token.startswith("MIG-") and of and place:
        gi, _, ci = place.partition("/")
        return _at(of[0], f"gi{gi}/ci{ci}", existing, token)
    if token.startswith("MIG-"):
        return _by_uuid(token, gpus, existing, listed, why_not)
    match = _BY_INDEX.fullmatch(token)
    number, index = (int(match[2]), int(match[3])) if match else (-1, -1)
    by_file = bool(match and match[1])
    of = [gpu for gpu in gpus if (gpu.number if by_file else gpu.order) == number]
    if not of or not existing.get(of[0].order):
        return Wanted({}, error=f"{token}, which this node has not")
    uuid = next((uuid for uuid, device in listed.uuids.items() if device == (of[0].uuid, index)), "")
    return _of_gpu(of[0], index, existing, listed, why_not)._replace(uuid=uuid)


def _by_uuid(token: str, gpus: tuple[Gpu, ...], existing: dict[int, list[str]], listed: Listed, why_not: str) -> Wanted:
    found = [uuid for uuid in listed.uuids if uuid.lower().startswith(token.lower())]
    if len(found) == 1:
        uuid, index = listed.uuids[found[0]]
        of = [gpu for gpu in gpus if gpu.uuid == uuid and existing.get(gpu.order)]
        if of:
            return _of_gpu(of[0], index, existing, listed, why_not)._replace(uuid=token)
    elif listed.uuids:
        return Wanted({}, error=f"{token}, which nvidia-smi does not list")
    every = {order: list(places) for order, places in existing.items() if places}
    if not every:
        return Wanted({}, error=f"{token}, and this node has none")
    single = sum(len(places) for places in every.values()) == 1
    why = (
        ""
        if single
        else f"{token}: only the driver knows which instance it is ({why_not or 'of no known GPU'}), so all are given"
    )
    return Wanted(every, token, why)


def _of_gpu(gpu: Gpu, index: int, existing: dict[int, list[str]], listed: Listed, why_not: str) -> Wanted:
    place = listed.places.get((gpu.uuid, index), "")
    if place in existing[gpu.order]:
        return Wanted({gpu.order: [place]})
    every = existing[gpu.order]
    shown = gpu.uuid or str(gpu.order)
    known = why_not or "nvidia-smi does not say where it is"
    why = "" if len(every) == 1 else f"instance {index} of GPU {shown}: {known}, so all of this GPU are given"
    return Wanted({gpu.order: list(every)}, reason=why)


def _at(gpu: Gpu, place: str, existing: dict[int, list[str]], token: str) -> Wanted:
    if place not in existing.get(gpu.order, []):
        return Wanted({}, error=f"{token}, which does not exist on GPU {gpu.order}")
    return Wanted({gpu.order: [place]}, token)
