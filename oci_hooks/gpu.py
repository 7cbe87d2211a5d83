"""Which GPUs of the node this job got: the variables of the scheduler, read as the drivers read them.

Pure functions. `nvidia` and `amd` find the GPUs and say what to inject.
"""

from squashmount.lean import TYPE_CHECKING, NamedTuple

from .plan import Contribution

if TYPE_CHECKING:
    from .planners import Question

# what schedulers and container tools write for "no GPU"
_NONE = ("", "NoDevFiles", "none", "void", "-1")
ALL = "all"
SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")


class Gpu(NamedTuple):
    """One GPU of the node. `order` counts as the driver does, `number` is that of its device file."""

    order: int
    number: int
    uuid: str = ""
    nodes: tuple[str, ...] = ()


class Selection(NamedTuple):
    """The GPUs a container gets, the value of the selecting variable inside of it ("" for none), and why."""

    gpus: tuple[Gpu, ...] = ()
    value: str = ""
    reasons: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def none_here(question: "Question", why: str) -> Contribution:
    """Say that the host has no such GPU: what `auto` passes over, and who asks for this vendor must know."""
    if question.annotations.get("squashmount.gpu") == "auto":
        return Contribution(rejected=(why,))
    return Contribution(missing=(why,))


def numbers(text: str) -> "tuple[int, ...]":
    """Read Slurm's list: `0,2` or `0-3`. ValueError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def named(token: str, gpus: "tuple[Gpu, ...]") -> "Gpu | None":
    """Return the GPU that an index or a (shortened, unambiguous) UUID means; None for no such GPU.

    CUDA C programming guide, "CUDA Environment Variables"; ROCm, "GPU isolation techniques".
    """
    if token.isascii() and token.isdigit():
        return next((gpu for gpu in gpus if gpu.order == int(token)), None)
    found = [gpu for gpu in gpus if gpu.uuid and gpu.uuid.lower().startswith(token.lower())]
    return found[0] if len(found) == 1 and token.startswith("GPU-") else None


def tokens(value: str) -> "tuple[str, ...]":
    """Split the value of CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES; () when it means no GPU."""
    return () if value.strip() in _NONE else tuple(token.strip() for token in value.split(","))


def select(gpus: "tuple[Gpu, ...]", environ: "dict[str, str]", variable: str) -> Selection:
    """Choose among the GPUs of the node by what the host job has in its environment.

    A scheduler's GPUs are all given, also to a task that uses one of them: MPI and NCCL reach the others by
    CUDA or ROCm IPC. Without a scheduler only those that the variable names. Inside, the GPUs are counted anew from
    those that are there, so indices are rewritten; UUIDs stay.
    """
    given, reason, relative = _of_slurm(gpus, environ)
    value = environ.get(variable)
    if relative and not given:
        return Selection((), "", (f"{reason}: no GPU",))
    if value is None or value.strip() == ALL:
        every = f"{variable} is not set" if value is None else f"{variable}={value}"
        return Selection(given, "", (reason or f"{every}: every GPU of the node",))
    wanted = tokens(value)
    if not wanted:
        return Selection((), "", (f"{variable}={value}: no GPU",))
    counted = relative and _counts_from_zero(wanted, given)
    if counted:
        # an index counts the step's; a UUID of no known GPU may be one that /proc does not show
        chosen = [gpu for token in wanted if not token.isdigit() and (gpu := named(token, gpus))]
        wrong = ""
    else:
        chosen, wrong = _chosen(wanted, gpus, by_number=relative)
    if wrong:
        known = ", ".join(f"{gpu.order} {gpu.uuid}".strip() for gpu in gpus) or "none"
        return Selection((), "", (), (f"{variable}={value} names {wrong}, which this node has not (known: {known}).",))
    foreign = [gpu for gpu in chosen if gpu not in given]
    if foreign:
        text = f"{variable}={value} names a GPU that is not among those of {reason}."
        return Selection((), "", (), (text,))
    if counted:
        return Selection(given, value, (reason,))
    if not relative:
        given = tuple(gpu for gpu in gpus if gpu in chosen)
        reason = f"{variable}={value}"
    inside = [str(given.index(gpu)) if token.isdigit() else token for token, gpu in zip(wanted, chosen, strict=True)]
    return Selection(given, ",".join(inside), (reason,))


def _of_slurm(gpus: "tuple[Gpu, ...]", environ: "dict[str, str]") -> "tuple[tuple[Gpu, ...], str, bool]":
    """Return the step's GPUs, a reason, and whether Slurm said which.

    Its numbers are those of the device files (Slurm, gres.conf: File=/dev/nvidia[0-3]), never relative to a cgroup
    (srun(1), SLURM_STEP_GPUS). Sites' scripts write names and UUIDs there, too.
    """
    for name in SLURM:
        if name not in environ:
            continue
        text, reason = environ[name], f"{name}={environ[name]}"
        if not tokens(text):
            return (), reason, True
        if text.strip() == ALL:
            return gpus, reason, True
        found = [_by_slurm(token, gpus) for token in tokens(text)]
        if all(found):
            several = {gpu for some in found for gpu in some}
            return tuple(gpu for gpu in gpus if gpu in several), reason, True
    return gpus, "", False


def _by_slurm(token: str, gpus: "tuple[Gpu, ...]") -> "list[Gpu]":
    """Return the GPUs that one word of Slurm's list means; [] when one of them is not here, or nobody can tell."""
    if token.startswith("GPU-"):
        one = named(token, gpus)
        return [one] if one else []
    # nvidia0, and nvidia0:mig1 for an instance of it
    text = token.partition(":mig")[0].removeprefix("nvidia")
    try:
        wanted = set(numbers(text))
    except ValueError:
        return []
    found = [gpu for gpu in gpus if gpu.number in wanted]
    return found if len(found) == len(wanted) else []


def _counts_from_zero(wanted: "tuple[str, ...]", given: "tuple[Gpu, ...]") -> bool:
    """Tell whether the indices count the step's GPUs, as they do where Slurm hides the others (ConstrainDevices).

    Where both readings are possible this one is taken: it is what Slurm recommends.
    """
    return all(not token.isdigit() or int(token) < len(given) for token in wanted)


def _chosen(wanted: "tuple[str, ...]", gpus: "tuple[Gpu, ...]", *, by_number: bool) -> "tuple[list[Gpu], str]":
    chosen = []
    for token in wanted:
        if by_number and token.isdigit():
            gpu = next((one for one in gpus if one.number == int(token)), None)
        else:
            gpu = named(token, gpus)
        if gpu is None:
            return [], token
        chosen.append(gpu)
    return chosen, ""
