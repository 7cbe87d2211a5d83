"""The planners a module can name (`planner = "..."`): code for what rules cannot say.

A planner is `function(question: Question) -> Contribution`. Here stands where each is found; it is imported when
a container needs it.
"""

from squashmount.lean import TYPE_CHECKING, Callable, NamedTuple

from .module import Module
from .plan import Contribution
from .policy import Policy

if TYPE_CHECKING:
    from .tree import Tree


def trusting(_path: str) -> str:
    """Doubt nothing."""
    return ""


def run_nothing(*argv: str) -> str:
    """Refuse to start a program: what this machine's says is not true for another host. Raises ToolError."""
    from squashmount.errors import ToolError  # noqa: PLC0415 - rare

    raise ToolError(f"{argv[0]} is not started for files of another host.")


def run_here(*argv: str) -> str:
    """Run a program of this host to its end, within 20 seconds, and return what it prints. Raises ToolError."""
    from squashmount.process import run  # noqa: PLC0415 - subprocess, 10 ms

    return run(*argv, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, timeout=20)


class Question(NamedTuple):
    """What a planner is asked. `image_env`: of the container's environment what the module names; `environ`: the job's.

    `modules` are all that are on, `planners` theirs: what one does may depend on another's being there. `doubt` says
    why a file of the host is not to be trusted: what a planner is told by a file, somebody else could have written.
    The sources of mounts and the programs of hooks that it returns are checked for it. `run` starts a program of the
    host, which the planner must not doubt.
    """

    module: Module
    image: "Tree"
    host: "Tree"
    policy: Policy
    annotations: dict[str, str]
    environ: dict[str, str]
    image_env: dict[str, str]
    planners: tuple[str, ...] = ()
    modules: tuple[Module, ...] = ()
    doubt: Callable[[str], str] = trusting
    run: Callable[..., str] = run_nothing


Planner = Callable[[Question], Contribution]

PLANNERS: dict[str, str] = {
    "amd": "amd:plan_amd",
    "glibc": "glibc:plan_glibc",
    "libraries": "host_libraries:plan_libraries",
    "mpich": "mpi:plan_mpich",
    "nvidia": "nvidia:plan_nvidia",
    "pmix": "launch:plan_pmix",
    "rdma": "rdma:plan_rdma",
    "slurm-sync": "slurm_sync:plan_slurm_sync",
    "ssh": "ssh:plan_ssh",
    "timestamp": "timestamp:plan_timestamp",
}
"""Name of the planner -> "module:function" in this folder, for example "mpich": "mpi:plan_mpich"."""

_LIBRARIES = ("LD_LIBRARY_PATH", "PATH")  # where an image has libraries of its own
_FABRIC = (*_LIBRARIES, "FI_PROVIDER_PATH")

READS: dict[str, tuple[str, ...]] = {
    "amd": ("ROCR_VISIBLE_DEVICES",),
    "glibc": _LIBRARIES,
    "libraries": _FABRIC,
    "mpich": _FABRIC,
    "nvidia": (
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_DISABLE_REQUIRE", "NVIDIA_REQUIRE_CUDA"),
        *("NVIDIA_REQUIRE_DRIVER", "NVIDIA_REQUIRE_BRAND", "NVIDIA_REQUIRE_ARCH", "NVIDIA_REQUIRE_JETPACK"),
    ),
    "pmix": _LIBRARIES,
    "rdma": _LIBRARIES,
}
"""What each planner asks of the container's environment: it gets that only of modules that name it (`image_env`)."""


def planner(name: str) -> Planner | None:
    """Return the planner of that name, imported now; None for an unknown name."""
    place = PLANNERS.get(name)
    if place is None:
        return None
    from importlib import import_module  # noqa: PLC0415 - only where a planner is needed

    module, _, function = place.partition(":")
    found: Planner = getattr(import_module(f".{module}", __package__), function)
    return found
