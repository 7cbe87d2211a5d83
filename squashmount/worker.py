"""The process that speaks FUSE: reader, tree and wire engine, and the counters `squashmount ps` shows."""

import json
import os
import threading
import time
from contextlib import suppress

from .keeper import Served, ServerDir
from .runtime import Log
from .server.tree import IdShift, Tree
from .server.wire import Stats, serve
from .squashfs.image import SquashImage

STATS_SECONDS = 2.0


def work(image: SquashImage, served: Served, fuse: int, place: ServerDir, log: Log) -> None:
    """Serve until the connection ends."""
    shift = served.shift
    tree = Tree(image, IdShift(*shift))
    stats = Stats()
    threading.Thread(target=_publish, args=(stats, place), daemon=True).start()
    serve(fuse, tree, threads=min(os.cpu_count() or 1, 4), stats=stats, log=log)


def _publish(stats: Stats, place: ServerDir) -> None:
    last = ""
    wait = STATS_SECONDS / 10
    while True:
        time.sleep(wait)
        wait = STATS_SECONDS
        text = json.dumps(stats.snapshot())
        if text != last:
            last = text
            # the directory is gone when this server has handed over to the next
            with suppress(OSError):
                temp = f"{place.stats}.new"
                with open(temp, "w", encoding="utf-8") as file:
                    file.write(text)
                os.rename(temp, place.stats)
