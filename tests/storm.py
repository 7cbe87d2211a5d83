"""Kill the worker of a server again and again while containers import, walk and read from it: no call may fail.

`scripts/storm` runs this on the image of the benchmark; a short part of it is a test (test_storm.py). Every round is a
new server and a new mount, so that nothing is in the kernel's caches yet.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import Done, Node, install_product, make_user, wait_for

FOLDERS = ("/usr", "/odd", "/bench")
FILES = ("/bench/big", "/odd/noise", "/odd/sparse")

# Runs in the container, three processes at once. A module that does not import on unpacked layers either is a result
# like any other; an OSError is none.
JOB = r"""
import hashlib, importlib, json, os, sys, time
FOLDERS, FILES = json.loads(sys.argv[1])
SIDE_EFFECTS = {"antigravity", "this", "idlelib", "turtledemo"}

def imports(timed):
    sys.path.insert(0, "/bench/modules")
    names = sorted(set(sys.stdlib_module_names) - SIDE_EFFECTS)
    for folder in ("encodings", "email", "json", "asyncio", "xml/etree", "multiprocessing", "ctypes"):
        top = os.path.join(os.path.dirname(os.__file__), folder)
        found = os.listdir(top) if os.path.isdir(top) else []
        names += sorted(folder.replace("/", ".") + "." + name[:-3] for name in found if name.endswith(".py"))
    for pack in sorted(os.listdir("/bench/modules")) if os.path.isdir("/bench/modules") else []:
        found = os.listdir("/bench/modules/" + pack)
        names += sorted(pack + "." + name[:-3] for name in found if name.startswith("mod") and name.endswith(".py"))
    for name in names:
        try:
            with timed:
                module = importlib.import_module(name)
            yield name + str(getattr(module, "VALUE", ""))
        except OSError:
            raise
        except Exception as err:
            yield name + type(err).__name__

def walk(timed):
    pending = [top for top in FOLDERS if os.path.isdir(top)]
    while pending:
        folder = pending.pop()
        with timed:
            names = sorted(os.listdir(os.fsencode(folder)))
        for name in names:
            path = os.path.join(os.fsencode(folder), name)
            with timed:
                info = os.lstat(path)
            if info.st_mode >> 12 == 4:
                pending.append(path)
            yield "%r %o %d" % (path, info.st_mode, 0 if info.st_mode >> 12 == 4 else info.st_size)

def read(timed):
    for path in FILES:
        if os.path.exists(path):
            with open(path, "rb", buffering=0) as file:
                while True:
                    with timed:
                        data = file.read(1 << 17)
                    if not data:
                        break
                    yield hashlib.sha256(data).hexdigest()

class Timed:
    slowest = 0.0
    def __enter__(self):
        self.began = time.monotonic()
    def __exit__(self, *_):
        self.slowest = max(self.slowest, time.monotonic() - self.began)

def result(job):
    timed, digest, count = Timed(), hashlib.sha256(), 0
    try:
        for line in job(timed):
            digest.update(line.encode())
            count += 1
    except OSError as err:
        return {"failed": repr(err), "slowest": timed.slowest}
    return {"count": count, "sha256": digest.hexdigest(), "slowest": timed.slowest}

pipes = {}
for job in (imports, walk, read):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        sys.stdout = sys.stderr
        with open(theirs, "w") as out:
            json.dump(result(job), out)
        os._exit(0)
    os.close(theirs)
    pipes[job.__name__] = ours
print(json.dumps({name: json.load(open(pipe)) for name, pipe in pipes.items()}))
"""

Found = dict[str, dict[str, object]]


@dataclass
class Report:
    """What happened. Seconds."""

    kills: int = 0
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    stall: float = 0.0
    undisturbed: float = 0.0
    """The longest call of a round without kills."""
    takeovers: list[float] = field(default_factory=list)
    """From each kill to the successor's process."""

    def text(self) -> str:
        """Return it in one sentence."""
        waits = sorted(self.takeovers) or [0.0]
        return (
            f"{self.kills} kills in {self.rounds} rounds, {len(self.failures)} failed calls; longest call"
            f" {self.stall * 1000:.0f} ms (undisturbed {self.undisturbed * 1000:.0f} ms); the successor was there after"
            f" {waits[len(waits) // 2] * 1000:.0f} ms (median), {waits[-1] * 1000:.0f} ms (longest)"
        )


class Killer(threading.Thread):
    """Kills the worker of the node's one server every so often."""

    def __init__(self, node: Node, report: Report, kills: int, every: float) -> None:
        """Up to `kills` in all; `every` in seconds."""
        super().__init__(daemon=True)
        self._node, self._report, self._kills, self._every = node, report, kills, every
        self.done = threading.Event()

    def run(self) -> None:
        """Kill until the container has ended or there were enough."""
        last, killed = 0, 0.0
        while self._report.kills < self._kills and not self.done.is_set():
            worker = self._worker()
            if worker in {0, last}:
                time.sleep(0.001)
                continue
            if last:
                self._report.takeovers.append(time.monotonic() - killed)
            if self.done.wait(self._every):
                return
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                last, killed = worker, time.monotonic()
                self._report.kills += 1

    def _worker(self) -> int:
        for info in self._node.state().glob("*/info.json"):
            with suppress(OSError, ValueError):  # it is being written, or going away with its server
                return int(json.loads(info.read_text())["worker"])
        return 0


def storm(native: Node, node: Node, image: str, *, kills: int, every: float, say: object = None) -> Report:
    """Kill `kills` workers, one every `every` seconds, and compare what containers see with the unpacked image."""
    node.env["SQUASHMOUNT_LINGER"] = "0"
    report = Report()
    expected = _round(native, image)
    report.undisturbed = _slowest(_compared(expected, _settled(node, image), report))
    while report.kills < kills and report.rounds < 4 * kills and not report.failures:
        killer = Killer(node, report, kills, every)
        killer.start()
        try:
            found = _settled(node, image)
        except AssertionError as err:
            report.failures.append(str(err))
            break
        finally:
            killer.done.set()
            killer.join()
        report.rounds += 1
        report.stall = max(report.stall, _slowest(_compared(expected, found, report)))
        if callable(say):
            say(report.text())
    return report


def older_storm(native: Node, node: Node, image: str, *, kills: int, every: float, say: object = None) -> Report:
    """As storm, on a kernel that resends nothing: containers may fail, but never hang, and the next one is right."""
    node.env["SQUASHMOUNT_LINGER"] = "0"
    report = Report()
    broken = 0
    expected = _round(native, image)
    while report.kills < kills and report.rounds < 4 * kills:
        killer = Killer(node, report, kills, every)
        killer.start()
        try:
            ended = _run(node, image, timeout=60)
            broken += ended.code != 0 or '"failed"' in ended.out
        finally:
            killer.done.set()
            killer.join()
        wait_for(lambda: not node.servers(), "the server ends with its container")
        report.rounds += 1
        if callable(say):
            say(f"{report.text()}; {broken} rounds with an error")
    _compared(expected, _settled(node, image), report)
    return report


def as_before_resend(product: Path) -> None:
    """Make an installed product believe that every kernel is older than 6.9."""
    (module,) = product.glob("lib/python*/site-packages/squashmount/supervisor.py")
    text = module.read_text()
    assert "\nRESEND = (6, 9)\n" in text
    module.write_text(text.replace("\nRESEND = (6, 9)\n", "\nRESEND = (99, 0)\n"))


def _settled(node: Node, image: str) -> Found:
    found = _round(node, image)
    wait_for(lambda: not node.servers(), "the server ends with its container")
    return found


def _round(node: Node, image: str) -> Found:
    found: Found = json.loads(_run(node, image, timeout=300).ok())
    return found


def _run(node: Node, image: str, *, timeout: float) -> Done:
    argument = json.dumps([FOLDERS, FILES])
    options = ("--rm", "--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "PYTHONHASHSEED=0", "--entrypoint", "python3")
    return node.podman("run", *options, image, "-c", JOB, argument, timeout=timeout)


def _compared(expected: Found, found: Found, report: Report) -> Found:
    for name, entry in expected.items():
        wanted = {key: value for key, value in entry.items() if key != "slowest"}
        got = {key: value for key, value in found[name].items() if key != "slowest"}
        if got != wanted:
            report.failures.append(f"{name}: {got} instead of {wanted}")
    return found


def _slowest(found: Found) -> float:
    return max(float(str(entry["slowest"])) for entry in found.values())


def main(argv: list[str]) -> int:
    """Exit 0 when no call failed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="scripts/storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many workers are killed (default 100)")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between a successor and its end (0.1)")
    parser.add_argument("--older", action="store_true", help="as before Linux 6.9: errors are allowed, hanging is not")
    options = parser.parse_args(argv)
    from inputs import NAME, Spec, load_image  # of bench/: scripts/storm puts it on the path

    lab = Path(os.environ["LAB"])
    product = install_product(lab)
    if options.older:
        as_before_resend(product)
    user = make_user(lab, "storm", 2001)
    store = lab / "store"
    store.mkdir()
    os.chown(store, user.uid, user.gid)
    login = Node(user, "login", product)
    node = Node(user, "compute", product, stores=(store,))
    try:
        load_image(Spec(), login, lab)
        login.migrate("mig", NAME, str(store), timeout=600).ok()
        report = (older_storm if options.older else storm)(
            login, node, NAME, kills=options.kills, every=options.every, say=print
        )
    finally:
        node.close()
        login.close()
    print("\n".join(report.failures) or "every byte is right")
    return 1 if report.failures or report.kills < options.kills else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
