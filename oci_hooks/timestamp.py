"""The module timestamp: lines in the container's log that say, to the microsecond, when it reached each stage."""

from squashmount.lean import TYPE_CHECKING

from .log import LATER
from .plan import Contribution, Hook

if TYPE_CHECKING:
    from .planners import Question

WORD = "timestamp"
"""`squashmount-hook timestamp TEXT`."""

_FIRST, _LAST = -100, 100
_POINTS = (
    ("createRuntime", _FIRST, "createRuntime begins: namespaces and mounts are made"),
    ("createRuntime", _LAST, "createRuntime ends"),
    ("createContainer", _LAST, "createContainer ends: the root is entered next"),
    ("poststart", _LAST, "poststart: the program runs"),
)


def plan_timestamp(question: "Question") -> Contribution:
    """Return a hook for each point. precreate needs none: what the plan says about itself is logged there."""
    message = question.annotations.get("squashmount.timestamp.message", "")
    said = f" ({message})" if message else ""
    hooks = [Hook(stage, "", (WORD, text + said), LATER, order) for stage, order, text in _POINTS]
    return Contribution(hooks=tuple(hooks), reasons=(f"timestamp: precreate: the plan is made{said}",))


def lines(arguments: list[str]) -> list[str]:
    """Return what is to be logged."""
    return [f"timestamp: {text}" for text in arguments]
