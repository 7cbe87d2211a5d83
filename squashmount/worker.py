"""The process that speaks FUSE: reader, tree and wire engine, and the counters `squashmount ps` shows."""

import os
import time

from .keeper import Served, ServerDir
from .lean import TYPE_CHECKING, Thread, suppress
from .runtime import Log, Report
from .server.tree import IdShift, Tree
from .server.wire import Stats, serve
from .squashfs.image import SquashImage

if TYPE_CHECKING:
    from .server.recording import Recording
    from .staging import Local

STATS_SECONDS = 2.0


def work(  # noqa: PLR0917 - what a supervisor hands over, called once
    image: SquashImage, served: Served, fuse: int, place: ServerDir, log: Log, local: "Local | None", *, resumed: bool
) -> None:
    """Serve until the connection ends. `resumed`: after another worker that was killed."""
    tree = Tree(image, IdShift(*served.shift))
    stats = Stats()
    with suppress(RuntimeError):  # the limit of processes: no counters
        Thread(target=_publish, args=(stats, place), daemon=True).start()
    if local is not None:
        from .staging import stage  # noqa: PLC0415 - only where the site wants it

        stage(image, local, log)
    recording = _recording(served, tree, log, resumed=resumed)
    serve(
        fuse,
        tree,
        threads=min(os.cpu_count() or 1, 4),
        stats=stats,
        log=log.fail,
        resumed=resumed,
        observe=recording.recorder if recording else None,
    )
    if recording:
        recording.finish()


def _recording(served: Served, tree: Tree, log: Log, *, resumed: bool) -> "Recording | None":
    """Record because somebody asked (until the end), or by the way (the first seconds of the first worker)."""
    if not served.record and (resumed or not served.learn):
        return None
    from .server.recording import LEARN_SECONDS, Recording  # noqa: PLC0415 - hardly ever needed

    if served.record:
        return Recording(tree, (served.record,), log)
    recording = Recording(tree, served.learn, log, seconds=LEARN_SECONDS)

    def later() -> None:
        time.sleep(LEARN_SECONDS)
        recording.finish()

    Thread(target=later, daemon=True).start()
    return recording


def _publish(stats: Stats, place: ServerDir) -> None:
    report = Report.of(place.stats)
    last: dict[str, int] = {}
    wait = STATS_SECONDS / 10
    while True:
        time.sleep(wait)
        wait = STATS_SECONDS
        counts = stats.snapshot()
        if counts != last:
            last = counts
            report.write(counts)
