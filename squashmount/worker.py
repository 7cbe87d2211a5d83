"""The process that speaks FUSE: reader, tree and wire engine, and the counters `squashmount ps` shows."""

import os
import time

from .keeper import Served, ServerDir
from .lean import Thread, json_text, suppress
from .runtime import Log
from .server.tree import IdShift, Tree
from .server.wire import Stats, serve
from .squashfs.image import SquashImage

STATS_SECONDS = 2.0


def work(image: SquashImage, served: Served, fuse: int, place: ServerDir, log: Log, *, resumed: bool) -> None:
    """Serve until the connection ends. `resumed`: after another worker that was killed."""
    tree = Tree(image, IdShift(*served.shift))
    stats = Stats()
    Thread(target=_publish, args=(stats, place), daemon=True).start()
    serve(fuse, tree, threads=min(os.cpu_count() or 1, 4), stats=stats, log=log.fail, resumed=resumed)


def _publish(stats: Stats, place: ServerDir) -> None:
    # by descriptor: the name may be another server's by then, when this one only waits for its last container
    directory = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    name = os.path.basename(place.stats)
    last = ""
    wait = STATS_SECONDS / 10
    while True:
        time.sleep(wait)
        wait = STATS_SECONDS
        text = json_text(stats.snapshot())
        if text != last:
            last = text
            with suppress(OSError):
                temp = os.open(
                    f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=directory
                )
                with open(temp, "w", encoding="utf-8") as file:
                    file.write(text)
                os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)
