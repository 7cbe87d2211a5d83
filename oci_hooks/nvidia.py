"""The planner "nvidia": the driver's devices and libraries of the host, for the GPUs of the job.

The vendor's own CDI file is used where there is one; otherwise the same is made (`cdi`) of what nvidia-container-cli
lists, or, without that, of what lies on the host (`nvidia_parts`).
Sources: /proc/driver/nvidia (driver README, "Proc interface"), MIG user guide ("Device nodes and capabilities"),
CUDA compatibility guide. Not seen here: hardware. Everything is tested with made-up nodes and real ELF files.
"""

from squashmount.errors import SquashmountError
from squashmount.lean import TYPE_CHECKING, Any, Callable, Iterable, partial

from . import cdi, cuda, mig, nvidia_parts
from .gpu import SLURM, Gpu, Selection, none_here, select, tokens
from .listing import names_in
from .nvidia_host import Host, completed, read_host
from .plan import Contribution, Device, Hook

if TYPE_CHECKING:
    from .planners import Question
    from .tree import Tree

_VISIBLE = "CUDA_VISIBLE_DEVICES"
COMPAT = "/usr/local/cuda/compat"
LIBRARIES = "/run/squashmount/nvidia"
"""Where the driver's libraries are mounted: at no path of the image, and before all of them in LD_LIBRARY_PATH."""


def plan_nvidia(question: "Question") -> Contribution:
    """Return what the container needs for the GPUs of its job."""
    host = read_host(question.host)
    if not host.gpus:
        return none_here(question, "no NVIDIA GPU: the host has no /dev/nvidia0 and so on")
    problems: list[str] = []
    named = "".join(question.environ.get(name, "") for name in (_VISIBLE, *SLURM))
    if not host.driver or (("GPU-" in named or "MIG-" in named) and not all(gpu.uuid for gpu in host.gpus)):
        host = completed(host, lambda argv: said_by(question, argv, problems))
    chosen = choose(host, question.environ, partial(_ask_smi, question))
    if chosen.errors or not chosen.gpus:
        return Contribution(errors=chosen.errors, reasons=chosen.reasons)
    compat = compat_version(question.image)
    judged = judge(host.driver, compat, question.image_env)
    if judged.missing:
        return judged._replace(reasons=chosen.reasons)
    spec, origin = vendor_spec(question.host, chosen, problems, question.doubt)
    if spec is None:
        capabilities = question.image_env.get("NVIDIA_DRIVER_CAPABILITIES", "")
        parts, origin = driver_parts(question, host.driver, problems)
        parts = nvidia_parts.wanted(parts, capabilities)
        if nvidia_parts.computes(capabilities) and not has_cuda(parts):
            return Contribution(missing=(f"libcuda.so of the driver {host.driver or '(unknown)'} is not on the host",))
        spec = made_spec(host, parts)
    part = cdi.contribution(spec, _names(spec, chosen), host=question.host, image=question.image)
    nodes = (Device(node) for gpu in chosen.gpus for node in gpu.nodes)
    part = part._replace(devices=tuple(dict.fromkeys((*part.devices, *nodes))), rejected=(*problems, *part.rejected))
    return _finished(part, chosen, judged, origin, use_compat=_newer(compat, host.driver), question=question)


def driver_parts(question: "Question", driver: str, problems: list[str]) -> "tuple[nvidia_parts.Parts, str]":
    """Return what nvidia-container-cli lists, or else what is found; and which. `problems` says why not the first."""
    text = said_by(question, nvidia_parts.LIST, problems)
    parts = nvidia_parts.listed(question.host, text) if text else nvidia_parts.Parts()
    if has_cuda(parts):
        return parts, "by nvidia-container-cli"
    if text:
        problems.append(f"{nvidia_parts.CLI} is not used: it lists no libcuda.so")
    return nvidia_parts.found(question.host, driver), "found on the host"


def said_by(question: "Question", argv: tuple[str, ...], problems: list[str]) -> str:
    """Return what a vendor's program prints; "" with the reason in `problems`, or when the host has none."""
    if question.host.kind(argv[0]) != "file":
        return ""
    why = question.doubt(argv[0])
    if why:
        problems.append(f"{argv[0]} is not trusted: {why}")
        return ""
    try:
        return question.run(*argv)
    except SquashmountError as err:
        problems.append(f"{argv[0]} is not used: {err}".replace("\n", " "))
        return ""


def _ask_smi(question: "Question") -> tuple[mig.Listed, str]:
    """Return what nvidia-smi says about instances, and why it says nothing."""
    problems: list[str] = []
    listed = mig.ask(lambda *argv: said_by(question, argv, problems))
    nothing = "" if listed.uuids else f"{mig.SMI} lists none"
    if question.host.kind(mig.SMI) != "file":
        nothing = f"{mig.SMI} is not on this host"
    return listed, "; ".join(problems) or nothing


def has_cuda(parts: "nvidia_parts.Parts") -> bool:
    """Return whether the driver's CUDA library is among the parts."""
    return any(library.elf.soname == "libcuda.so.1" for library in parts.libraries)


def made_spec(host: Host, parts: "nvidia_parts.Parts", hooks: tuple[Hook, ...] = ()) -> "dict[str, Any]":
    """Return a CDI file for all GPUs of a node and their MIG instances."""
    entries = []
    for gpu in host.gpus:
        entries.append(cdi.Entry((str(gpu.order), *([gpu.uuid] if gpu.uuid else [])), gpu.nodes))
        for index, place in enumerate(_places(host, gpu)):
            instances = host.mig[gpu.number]
            nodes = (*gpu.nodes, *_nodes_of(instances, place))
            gi, ci = place.removeprefix("gi").split("/ci")
            named = (f"MIG-{gpu.uuid}/{gi}/{ci}",) if gpu.uuid else ()
            entries.append(cdi.Entry((f"{gpu.order}:{index}", *named), nodes))
    return cdi.generate(
        cdi.KIND,
        entries,
        nodes=parts.nodes,
        libraries=parts.libraries,
        files=parts.files,
        folder=LIBRARIES,
        env=("NVIDIA_VISIBLE_DEVICES=void",),
        hooks=hooks,
    )


def _finished(
    part: Contribution,
    chosen: Selection,
    judged: Contribution,
    origin: str,
    *,
    use_compat: bool,
    question: "Question",
) -> Contribution:
    env = dict(part.env_set)
    env["NVIDIA_VISIBLE_DEVICES"] = "void"  # a vendor hook of the site must not do the same once more
    host_value = question.environ.get("CUDA_VISIBLE_DEVICES")
    own = question.image_env.get("CUDA_VISIBLE_DEVICES", host_value)
    rejected = list(part.rejected)
    if own != host_value:
        rejected.append(f"CUDA_VISIBLE_DEVICES={own} of the container stays as it is")
    elif chosen.value:
        env["CUDA_VISIBLE_DEVICES"] = chosen.value
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the default order is that of speed
    paths = [COMPAT] if use_compat else []
    if any(mount.target.startswith(LIBRARIES + "/") for mount in part.mounts):
        paths.append(LIBRARIES)
    compat = (f"{COMPAT} of the image is newer than the driver and comes first",) if use_compat else ()
    gpus = ", ".join(gpu.uuid or str(gpu.order) for gpu in chosen.gpus)
    return part._replace(
        env_set=env,
        env_prepend={"LD_LIBRARY_PATH": ":".join(paths)} if paths else {},
        reasons=(*chosen.reasons, f"GPUs {gpus}, {origin}", *compat, *judged.reasons, *part.reasons),
        rejected=tuple(rejected),
    )


def choose(host: Host, environ: "dict[str, str]", ask: Callable[[], tuple[mig.Listed, str]]) -> Selection:
    """Choose GPUs, and the MIG instances of them, by the job's environment; the nodes of each are complete.

    `ask` asks nvidia-smi, and is called only where nothing else tells an instance from the others.
    """
    value = environ.get(_VISIBLE)
    for name in (_VISIBLE, *SLURM) if value is None or tokens(value) else ():
        if any(mig.names_instance(token) for token in tokens(environ.get(name, ""))):
            return _choose_mig(host, name, environ, ask)
    chosen = select(host.gpus, environ, _VISIBLE)
    return chosen._replace(gpus=tuple(_with(gpu, host.mig.get(gpu.number, {}).values()) for gpu in chosen.gpus))


def _choose_mig(
    host: Host, name: str, environ: "dict[str, str]", ask: Callable[[], tuple[mig.Listed, str]]
) -> Selection:
    existing = {gpu.order: _places(host, gpu) for gpu in host.gpus}
    said = f"{name}={environ[name]}"
    words = tokens(environ[name])
    # MIG-GPU-UUID/GI/CI says all; of a single instance nothing is to be asked
    several = sum(map(len, existing.values())) > 1
    listed, why_not = ask() if several and not all("/" in word for word in words) else (mig.Listed({}, {}), "")
    nodes: dict[int, list[str]] = {}
    reasons, names = [said], []
    for word in words:
        found = mig.find(word, host.gpus, existing, listed, why_not)
        if found.error:
            return Selection((), "", (), (f"{said} names {found.error}.",))
        reasons += [found.reason] if found.reason else []
        names.append(found.uuid)
        for order, places in found.places.items():
            (gpu,) = (one for one in host.gpus if one.order == order)
            for place in places:
                nodes.setdefault(order, []).extend(_nodes_of(host.mig[gpu.number], place))
    chosen = tuple(_with(gpu, nodes[gpu.order]) for gpu in host.gpus if gpu.order in nodes)
    inside = (
        ",".join(names) if name == _VISIBLE and all(names) else environ.get(_VISIBLE, "") if name != _VISIBLE else ""
    )
    return Selection(chosen, inside, tuple(reasons))


def _places(host: Host, gpu: Gpu) -> list[str]:
    """Return the instances of a GPU that programs can run on: compute instances, "gi1/ci0"."""
    return [place for place in host.mig.get(gpu.number, {}) if "/" in place]


def _nodes_of(instances: "dict[str, str]", place: str) -> tuple[str, ...]:
    """Return the nodes that give access to a compute instance: its own, and that of the GPU instance around it."""
    names = (place.partition("/")[0], place)
    return tuple(instances[name] for name in names if name in instances)


def _with(gpu: Gpu, nodes: "Iterable[str]") -> Gpu:
    return gpu._replace(nodes=tuple(dict.fromkeys((*gpu.nodes, *nodes))))


def judge(driver: str, compat: str, image_env: "dict[str, str]") -> Contribution:
    """Compare what the image demands with the driver, and with the image's own newer libcuda (`compat`)."""
    facts = {"driver": driver} if driver else {}
    newest = cuda.cuda_of_driver(cuda.version(compat if _newer(compat, driver) else driver))
    if newest:
        facts["cuda"] = ".".join(str(part) for part in newest)
    reasons: list[str] = []
    missing: list[str] = []
    for name, text in cuda.requirements(image_env).items():
        verdict = cuda.check(text, facts) if facts else cuda.Verdict(None, "the driver's version is unknown")
        said = f"{name}: {verdict.why}"
        (missing if verdict.met is False else reasons).append(said)
    return Contribution(reasons=tuple(reasons), missing=tuple(missing))


def compat_version(image: "Tree") -> str:
    """Return the version of the libcuda that the image brings for older drivers; "" for none."""
    names = [name.removeprefix("libcuda.so.") for name in names_in(image, COMPAT) if name.startswith("libcuda.so.")]
    return next((name for name in names if len(cuda.version(name)) > 1), "")


def _newer(compat: str, driver: str) -> bool:
    # CUDA compatibility guide, "Forward compatibility": only ever to a newer driver branch
    return bool(compat and driver) and cuda.version(compat)[:1] > cuda.version(driver)[:1]


def vendor_spec(
    host: "Tree", chosen: Selection, problems: list[str], doubt: Callable[[str], str]
) -> "tuple[dict[str, Any] | None, str]":
    """Return the CDI file of the vendor's tool if it is of this driver and knows these GPUs, and where it is."""
    for path, spec in cdi.specs(host, cdi.KIND, problems):
        why = doubt(path)
        if why:
            problems.append(f"{path} is not trusted: {why}")
        elif _names(spec, chosen):
            return spec, f"by {path}"
        else:
            problems.append(f"{path} does not know the GPUs of this job")
    return None, ""


def _names(spec: "dict[str, Any]", chosen: Selection) -> tuple[str, ...]:
    """Return the names of the chosen GPUs, or MIG instances, in a CDI file; () when it lacks one."""
    known = {str(device.get("name")) for device in spec.get("devices", [])}
    instances = [word for word in tokens(chosen.value) if word.startswith("MIG-")]
    if instances and known.issuperset(instances):
        return tuple(instances)
    names = []
    for gpu in chosen.gpus:
        name = next((name for name in (gpu.uuid, str(gpu.order)) if name and name in known), "")
        if not name:
            return ()
        names.append(name)
    return tuple(names)
