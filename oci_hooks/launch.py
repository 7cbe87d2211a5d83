"""What the tasks of a Slurm step need to find each other, beyond an MPI library.

Without it nothing fails: each task believes to be the only one, or all wait for ever. So it is looked for before the
container starts. Nothing here may ask for a variable that differs from task to task: they share a plan.
"""

from squashmount.lean import TYPE_CHECKING

from .libraries import Libraries
from .mpi import is_mpi, mpi_copies
from .plan import Contribution, Map

if TYPE_CHECKING:
    from .planners import Question

_PMI = ("PMI_SIZE", "PMI_JOBID", "PMI_CONTROL_PORT", "PALS_APID")
"""Of Slurm's mpi/pmi2, Cray's mpi/cray_shasta and PALS; the same for all tasks of a step."""
_PMIX = "PMIX_VERSION"
_HOW = "podman --module mpi run …, or podman run --network=host --ipc=host --pid=host …"


def tasks_and_nodes(environ: Map) -> tuple[int, int]:
    """Return how many tasks on how many nodes the step has (srun(1), "OUTPUT ENVIRONMENT VARIABLES"); 1 outside."""
    found = [environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")]
    return (int(found[0]), int(found[1])) if all(text.isdecimal() for text in found) else (1, 1)


def no_pmi(environ: Map, *, pmix: bool, pmi: bool) -> tuple[str, ...]:
    """Return a warning if the tasks were started without a PMI that their MPI knows.

    Not an error: an image with an MPI library may also be run many times for something else.
    """
    tasks, _ = tasks_and_nodes(environ)
    if tasks == 1 or (pmi and any(name in environ for name in _PMI)) or (pmix and _PMIX in environ):
        return ()
    started = "PMIx, which this MPICH does not speak" if _PMIX in environ else "no PMI"
    if not pmi and any(name in environ for name in _PMI):
        started = "PMI2, which Open MPI speaks only where it was built for it"
    kind = "pmi2" if pmi else "pmix"
    return (
        f"srun started {tasks} tasks with {started}: each will be an MPI program of its own. Type srun --mpi={kind}.",
    )


def shared(environ: Map) -> Map:
    """Return which namespaces of the host the container needs, and what happens without: type -> sentence."""
    tasks, nodes = tasks_and_nodes(environ)
    needs: Map = {}
    if tasks > nodes:
        needs["ipc"] = f"tasks of one node share memory, and the container would have its own. Type {_HOW}"
    if nodes > 1:
        needs["network"] = f"tasks on other nodes cannot be reached from a network of the container's own. Type {_HOW}"
    return needs


def plan_pmix(question: "Question") -> Contribution:
    """Answer for Open MPI under PMIx: what must hold for the container, if there is an Open MPI in it."""
    environ = question.environ
    if tasks_and_nodes(environ)[0] == 1:
        return Contribution()
    image = Libraries(question.image, question.image_env)
    if not any(copy.family == "openmpi" for copy in mpi_copies(image.copies(is_mpi))):
        return Contribution()
    if _PMIX not in environ:
        return Contribution(warnings=no_pmi(environ, pmix=True, pmi=False))
    needs = shared(environ)
    if not (image.named("libmunge.so.2") and question.host.kind("/run/munge")):
        lacks = "the image has no libmunge" if question.host.kind("/run/munge") else "the node has no MUNGE"
        needs["user"] = (
            f"the PMIx server lets in only your own user number, and {lacks} to prove who else you are: the tasks "
            "would wait for ever. Type podman run --userns=keep-id …"
        )
    return Contribution(needs=needs)
