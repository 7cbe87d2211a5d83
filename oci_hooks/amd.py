"""The planner "amd": the device nodes of the job's AMD GPUs. The image brings its own ROCm, as AMD's images do.

Sources: Linux, Documentation/gpu and drivers/gpu/drm/amd/amdkfd/kfd_topology.c (the properties files); ROCm, "GPU
isolation techniques" and "Running ROCm Docker containers". Not seen here: hardware; tested with made-up nodes.
"""

from squashmount.lean import TYPE_CHECKING, Any

from . import cdi
from .gpu import SLURM, Gpu, none_here, numbers, select
from .listing import names_in
from .plan import Contribution, Device

if TYPE_CHECKING:
    from .planners import Question
    from .tree import Tree

KIND = "amd.com/gpu"
_TOPOLOGY = "/sys/class/kfd/kfd/topology/nodes"
_KFD = "/dev/kfd"
# relative to what ROCR_VISIBLE_DEVICES leaves, so they are passed as they are
_PASSED = ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def plan_amd(question: "Question") -> Contribution:
    """Return the nodes of the GPUs that the job got."""
    host, environ = question.host, question.environ
    if host.kind(_KFD) != "other":
        return none_here(question, f"no AMD GPU: the host has no {_KFD}")
    gpus = read_gpus(host)
    if not gpus:
        return none_here(question, "no AMD GPU: the host has no /dev/dri/renderD128 and so on")
    chosen = select(gpus, _by_index(gpus, environ), "ROCR_VISIBLE_DEVICES")
    if chosen.errors or not chosen.gpus:
        return Contribution(errors=chosen.errors, reasons=chosen.reasons)
    env = {name: environ[name] for name in _PASSED if name in environ}
    host_value = environ.get("ROCR_VISIBLE_DEVICES")
    own = question.image_env.get("ROCR_VISIBLE_DEVICES", host_value)
    rejected: tuple[str, ...] = ()
    if own != host_value:
        rejected = (f"ROCR_VISIBLE_DEVICES={own} of the container stays as it is",)
    elif chosen.value:
        env["ROCR_VISIBLE_DEVICES"] = chosen.value
    nodes = [_KFD, *(node for gpu in chosen.gpus for node in gpu.nodes)]
    named = ", ".join(gpu.uuid or str(gpu.order) for gpu in chosen.gpus)
    return Contribution(
        devices=tuple(Device(node) for node in nodes),
        env_set=env,
        reasons=(*chosen.reasons, f"GPUs {named}; the ROCm libraries are those of the image"),
        rejected=rejected,
    )


def made_spec(host: "Tree") -> "dict[str, Any] | None":
    """Return a CDI file for the GPUs of a node; None when there is none."""
    gpus = read_gpus(host) if host.kind(_KFD) == "other" else ()
    names = (tuple(filter(None, (str(gpu.order), gpu.uuid))) for gpu in gpus)
    entries = [cdi.Entry(called, gpu.nodes) for called, gpu in zip(names, gpus, strict=True)]
    return cdi.generate(KIND, entries, nodes=(_KFD,)) if entries else None


def read_gpus(host: "Tree") -> tuple[Gpu, ...]:
    """Return the GPUs in the order of the KFD topology, which ROCm counts; without it, in that of the render nodes."""
    found = []
    for name in sorted(names_in(host, _TOPOLOGY), key=lambda text: (len(text), text)):
        facts = _properties(host, f"{_TOPOLOGY}/{name}/properties")
        minor, unique = facts.get("drm_render_minor", 0), facts.get("unique_id", 0)
        if facts.get("simd_count") and minor:
            found.append((minor, f"GPU-{unique:016x}" if unique else ""))
    if not found:
        names = [name.removeprefix("renderD") for name in names_in(host, "/dev/dri") if name.startswith("renderD")]
        found = [(minor, "") for minor in sorted(int(name) for name in names if name.isdigit())]
    there = [(minor, uuid) for minor, uuid in found if host.kind(f"/dev/dri/renderD{minor}") == "other"]
    return tuple(Gpu(index, minor, uuid, _nodes(host, minor)) for index, (minor, uuid) in enumerate(there))


def _nodes(host: "Tree", minor: int) -> tuple[str, ...]:
    beside = names_in(host, f"/sys/class/drm/renderD{minor}/device/drm")
    cards = [f"/dev/dri/{name}" for name in beside if name.startswith("card")]
    return (f"/dev/dri/renderD{minor}", *(card for card in cards if host.kind(card) == "other"))


def _by_index(gpus: tuple[Gpu, ...], environ: dict[str, str]) -> dict[str, str]:
    """Return the environment without Slurm's numbers when they are not those of render nodes.

    gres.conf may name /dev/dri/renderD128 or the card beside it; with the latter the numbers say nothing here.
    """
    known = {name: environ[name] for name in ("ROCR_VISIBLE_DEVICES", *SLURM) if name in environ}
    return {name: text for name, text in known.items() if name not in SLURM or _are_nodes(text, gpus)}


def _are_nodes(text: str, gpus: tuple[Gpu, ...]) -> bool:
    try:
        return set(numbers(text)) <= {gpu.number for gpu in gpus}
    except ValueError:
        return True  # words and UUIDs


def _properties(host: "Tree", path: str) -> dict[str, int]:
    try:
        with host.open(path) as file:
            lines = file.read(65536).decode(errors="replace").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}
