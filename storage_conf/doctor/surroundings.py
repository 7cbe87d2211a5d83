"""Whether the doctor looks at the right user at all: S09.

In the namespace of `podman unshare`, or of a container, one is root, but not the machine's: Podman's files, ranges and
limits are looked up for another user there, and every other check would judge the wrong Podman. That is an error, and
nothing else is looked at. A user who is not root in a namespace (a container that keeps ids, a whole system in a
container) may well run Podman there: for him it is said, and the checks go on. A namespace that maps every id to itself
changes nothing.
"""

from collections.abc import Iterator

from squashmount.host import is_initial
from squashmount.idmap import IdMap, read_id_map

from ..finding import Finding, error, info
from .causes import ELSEWHERE
from .node import Node
from .probe import Probe


def inside(node: Node) -> Iterator[Finding]:
    """Tell a user namespace around this process: S09."""
    try:
        id_map = read_id_map(node.path("/proc/self/uid_map"))
    except OSError:
        return  # no /proc: others say it
    if not id_map or is_initial(id_map):
        return
    seen = f"/proc/self/uid_map: {_text(id_map)}"
    if node.uid == 0:
        yield error(
            "This is inside a user namespace (podman unshare, a container); the doctor looks at the user outside "
            "of it.",
            "Here you are root: Podman's files, ranges and limits would be looked up for another user than the one "
            "whose containers do not start.",
            "leave it (exit), and type squashmount-conf doctor without podman unshare, outside of the container",
            id=ELSEWHERE,
            evidence=seen,
        )
    else:
        yield info(
            "This is inside a user namespace: a container, or a system in one.",
            "Ids, ranges and files are judged as they are seen here, not as on the node outside of it.",
            "for the Podman of the node: leave it (exit), and type squashmount-conf doctor there",
            id=ELSEWHERE,
            evidence=seen,
        )


def _text(id_map: IdMap) -> str:
    return ", ".join(" ".join(map(str, entry)) for entry in id_map)


PROBES = (Probe((ELSEWHERE,), "The user namespace of this process", inside),)
