"""The module slurm-sync: no container of a Slurm step starts its program before all of them are there.

It waits at createRuntime, behind all other hooks of that stage: namespaces, mounts and the hooks of precreate are
done. Not at precreate, because a container whose runtime fails afterwards would have been counted; not at
createContainer, because with `--userns=keep-id` a hook is another user there, whom a shared file system refuses.
"""

import os

from squashmount.errors import SquashmountError, UsageError
from squashmount.lean import TYPE_CHECKING, NamedTuple, suppress

from .barrier import Arrival, Barrier
from .hostlist import expanded
from .log import LATER
from .plan import Contribution, Hook

if TYPE_CHECKING:
    from .planners import Question

WORD = "slurm-sync"
"""`squashmount-hook slurm-sync DIRECTORY SECONDS task|node`."""

ORDER = 50
"""Behind hooks that start servers the programs will look for (sshd)."""

VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_RESTART_COUNT", "SLURM_PROCID", "SLURM_NODEID"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_STEP_NODELIST"),
    *("SLURM_STEP_TASKS_PER_NODE", "SLURMD_NODENAME"),
)
"""Of srun(1), "OUTPUT ENVIRONMENT VARIABLES"; handed to the hook, whose environment is empty otherwise."""

_ANNOTATION = "squashmount.slurm-sync"
_DIRECTORY = "SQUASHMOUNT_SYNC_DIR"
_BELOW_HOME = ".local/state/squashmount/slurm-sync"
_OWN = "squashmount-sync"
"""Made in the job's directory, which may hold anything else."""
_TIMEOUT = 120
_MOST = 200
_SHOWN = 12
_BIGGEST = 1 << 20  # tasks or nodes: what a variable says more is a mistake


class Step(NamedTuple):
    """One container's place in its step; `nodes` how many containers each node has ({}: not told)."""

    name: str
    arrival: Arrival
    nodes: dict[str, int]


def plan_slurm_sync(question: "Question") -> Contribution:
    """Return the hook that waits. Nothing is planned by a task's number: all tasks of a node have the same plan."""
    environ = question.environ
    if not (environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID")):
        return Contribution(rejected=("this is no step of Slurm (srun): there is nobody to wait for",))
    # an image can carry annotations: where to make and remove files is not theirs to say
    if f"{_ANNOTATION}.directory" in question.annotations:
        return Contribution(errors=(f"no annotation says where containers meet: set {_DIRECTORY} in the job",))
    text = question.annotations.get(f"{_ANNOTATION}.timeout", str(_TIMEOUT))
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        why = f"seconds from 1 to {_MOST}: Podman gives up on a runtime after 240"
        return Contribution(errors=(f"{_ANNOTATION}.timeout is {text!r}, expected {why}",))
    above, below = environ.get(_DIRECTORY) or "", _OWN
    if not above:
        above, below = environ.get("HOME") or "", _BELOW_HOME
    if not os.path.isabs(above):
        why = f"{_DIRECTORY} is {environ.get(_DIRECTORY, '')!r}, HOME is {environ.get('HOME', '')!r}"
        return Contribution(errors=(f"no absolute directory to meet in: {why}",))
    directory = os.path.join(above, below)
    each = "node" if question.annotations.get(_ANNOTATION) == "node" else "task"
    hook = Hook("createRuntime", "", (WORD, directory, text, each), (*LATER, *VARIABLES), ORDER)
    return Contribution(
        hooks=(hook,), reasons=(f"waits at createRuntime for one container of each {each}, {text} s at most",)
    )


def wait(arguments: list[str], environ: dict[str, str]) -> list[str]:
    """Wait as the hook's arguments say and return what is to be logged. SquashmountError names who did not come."""
    directory, seconds, each = arguments
    step = step_of(environ, each)
    barrier = Barrier(directory, step.name, step.arrival, timeout=int(seconds), missing=lambda who: missing(step, who))
    try:
        passed = barrier.wait()
    except OSError as err:
        raise SquashmountError(
            f"The containers of this step cannot meet in {directory}.",
            details=str(err),
            hint=f"name a directory that all nodes share and you can write: {_DIRECTORY}",
        ) from err
    except SquashmountError as err:
        err.hint = err.hint or f"longer: {_ANNOTATION}.timeout=SECONDS; without: {_ANNOTATION}=off"
        raise
    size, rank = step.arrival.size, step.arrival.rank
    took = f"{each} {rank} waited {passed.seconds:.3f} s ({passed.requests} requests to the file system)"
    return [f"all {size} containers of the step are there; {took}"]


def step_of(environ: dict[str, str], each: str) -> Step:
    """Return the place of this container, one for each task or node. UsageError for variables that say nothing.

    A job that is requeued keeps its number; SLURM_RESTART_COUNT tells its runs apart.
    """
    job, restart = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_RESTART_COUNT", default=0)
    step = _number(environ, "SLURM_STEP_ID", "SLURM_STEPID")
    if each == "node":
        rank, size = _number(environ, "SLURM_NODEID"), _number(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    else:
        rank, size = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if not rank < size <= _BIGGEST:
        raise UsageError(f"Slurm's variables say that this is {each} {rank} of {size}.")
    node = environ.get("SLURMD_NODENAME") or os.uname().nodename
    if "/" in node or "\0" in node:
        raise UsageError(f"SLURMD_NODENAME is {node!r}.")
    return Step(f"{job}.{step}.{restart}.{each}", Arrival(rank, size, node), _expected(environ, each))


def _number(environ: dict[str, str], *names: str, default: int = -1) -> int:
    for name in names:
        text = environ.get(name, "")
        if text.isdecimal() and len(text) < 16:
            return int(text)
        if text:
            raise UsageError(f"{name} is {text!r}, expected a number.")
    if default < 0:
        raise UsageError(f"{names[0]} is not set: this is no step of Slurm.", hint=f"{_ANNOTATION}=off")
    return default


def _expected(environ: dict[str, str], each: str) -> dict[str, int]:
    """Return the containers of each node; {} when the step's variables do not say."""
    with suppress(ValueError):
        nodes = expanded(environ.get("SLURM_STEP_NODELIST", ""))
        counts = [1] * len(nodes) if each == "node" else repeated(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        if len(nodes) == len(counts):
            return dict(zip(nodes, counts, strict=True))
    return {}


def repeated(text: str) -> list[int]:
    """Return the numbers of a list such as `2(x3),1` (SLURM_TASKS_PER_NODE). ValueError."""
    found: list[int] = []
    for part in text.split(","):
        number, times, count = part.partition("(x")
        many = int(count.removesuffix(")")) if times else 1
        if many > _BIGGEST:
            raise ValueError(text)
        found += [int(number)] * many
    return found


def missing(step: Step, arrived: dict[int, str]) -> str:
    """Return in words which ranks did not come, and from which nodes."""
    ranks = sorted(set(range(step.arrival.size)) - arrived.keys())
    there: dict[str, int] = {}
    for node in arrived.values():
        there[node] = there.get(node, 0) + 1
    nodes = [node for node, count in step.nodes.items() if there.get(node, 0) < count]
    return _some("rank", _ranges(ranks)) + (", of " + _some("node", nodes) if nodes else "")


def _ranges(numbers: list[int]) -> list[str]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]


def _some(what: str, words: list[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    one = len(words) == 1 and "-" not in words[0] if what == "rank" else len(words) == 1
    return f"{what}{'' if one else 's'} {', '.join(words[:_SHOWN])}{more}"
