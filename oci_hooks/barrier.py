"""A barrier of many processes on many nodes, over a directory of a shared file system. Nothing of Slurm is known here.

    DIR/NAME/state            a random word; behind it, when all is decided, `go` or `stopped REASON`
    DIR/NAME/end              who decides: made by one only (O_EXCL)
    DIR/NAME/0.G/RANK@NODE    arrivals, FAN to a directory; who finds it full makes a file one level up
    DIR/NAME/1.G/GROUP        full groups, and so on up to the level of one directory
    DIR/.NAME.WORD            a barrier that is not yet published, or finished and on its way out

DIR is the user's alone: what others could write there would be believed.

The cost in all is proportional to the number of processes: each makes one file, lists one directory of at most FAN
names, asks for `state` now and then, and takes its file away; the last to leave a directory removes it.

What is relied on (NFS without locks has it, too): O_EXCL, rename(2) of a directory, that a listing behind an own
create is a new one, and close-to-open for `state`, which is therefore written in place: an absent name, or one that is
replaced, may be remembered by a client for a minute (nfs(5), "Directory entry caching"). A finished barrier is renamed
before anybody is told, so that the next one of the same name begins with a directory of its own.
"""

import errno
import os
import stat
import time

from squashmount.errors import SquashmountError
from squashmount.lean import Callable, NamedTuple, suppress

from .barrier_remains import remove, remove_old

FAN = 32
OLD = 24 * 3600
"""Seconds after which a barrier is a dead one's and removed; none lasts longer than minutes."""

_REQUESTS_PER_SECOND = 2000
"""What all waiting processes together may ask of the file system."""
_SHORTEST, _LONGEST = 0.01, 2.0  # seconds between two looks
_GRACE = 10.0  # seconds for the process that decides to say what
_LONGEST_STATE = 1 << 16
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})
_THERE = frozenset({errno.EEXIST, errno.ENOTEMPTY})


class Arrival(NamedTuple):
    """One of `size` processes: its number from 0, and its node's name (no `/`)."""

    rank: int
    size: int
    node: str


class Passed(NamedTuple):
    """What an arrival had to do: seconds waited, requests made, looks at the state among them, names read."""

    seconds: float
    requests: int
    looks: int
    names: int


Names = Callable[[dict[int, str]], str]
"""Says in words who is missing; gets the node of every rank that arrived."""


class Barrier:
    """One process's part in one barrier."""

    def __init__(self, directory: str, name: str, arrival: Arrival, *, timeout: float, missing: Names) -> None:
        """Prepare; nothing is touched. `timeout` in seconds."""
        self._directory, self._name, self._me, self._missing = directory, name, arrival, missing
        self._own = os.path.join(f"0.{arrival.rank // FAN}", f"{arrival.rank}@{arrival.node}")
        self._timeout = timeout
        self._begin = time.monotonic()
        self._word = ""
        # kept open: the name may belong to the next barrier before the last has left this one
        self._fd = self._top = -1
        self._requests = self._looks = self._names = 0

    def wait(self) -> Passed:
        """Return when all have arrived. SquashmountError says who has not, OSError what the file system refuses."""
        try:
            self._top = self._meeting_place()
            self._join()
            self._arrive()
            while not self._released():
                waited = time.monotonic() - self._begin
                if waited >= self._timeout:
                    self._give_up()
                    break
                time.sleep(min(pause(waited, self._me.size), self._timeout - waited))
            seconds = time.monotonic() - self._begin
            self._leave()
        finally:
            self._close()
            if self._top >= 0:
                os.close(self._top)
        return Passed(seconds, self._requests, self._looks, self._names)

    # -- joining ---------------------------------------------------------------------------------------------------

    def _meeting_place(self) -> int:
        """Open the directory; make it if there is none. SquashmountError when it is not the user's alone."""
        self._count()
        try:
            fd = os.open(self._directory, _DIRECTORY)
        except FileNotFoundError:
            self._count(2)
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            fd = os.open(self._directory, _DIRECTORY)
        try:
            _check_ours(fd, self._directory, stat.S_ISDIR)
        except SquashmountError:
            os.close(fd)
            raise
        return fd

    def _join(self) -> None:
        """Enter the barrier that is open under the name; make it if there is none."""
        while True:
            self._word, verdict = self._entered()
            if self._word and not verdict:
                return
            if verdict.startswith("stopped"):
                self._after_a_stop(verdict)
            if not self._make():
                if time.monotonic() - self._begin > self._timeout:
                    raise SquashmountError(f"The barrier {self._name} in {self._directory} cannot be entered.")
                time.sleep(_SHORTEST)

    def _entered(self) -> tuple[str, str]:
        self._close()
        self._count()
        try:
            self._fd = os.open(self._named(), _DIRECTORY, dir_fd=self._top)
        except OSError as err:
            if err.errno not in _GONE:
                raise
            return "", ""
        _check_ours(self._fd, os.path.join(self._directory, self._name), stat.S_ISDIR)
        return self._state()

    def _after_a_stop(self, verdict: str) -> None:
        # who comes late hears how it ended; who was there, and comes again, begins anew
        if self._create(self._own):
            raise SquashmountError(verdict.removeprefix("stopped "), details="This container came too late.")
        self._count()
        # fails when another has done so: the place is taken, and what is open under the name is new
        with suppress(OSError):
            self._rename(self._named(), self._named(self._word))

    def _make(self) -> bool:
        """Publish a new barrier; tell whether it is ours that is open now."""
        word = os.urandom(8).hex()
        made = self._named(word)
        self._count(3)
        os.mkdir(made, 0o700, dir_fd=self._top)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(f"{made}/state", flags, 0o600, dir_fd=self._top), "w", encoding="ascii") as file:
            file.write(f"{word}\n")
        try:
            self._rename(made, self._named())
        except OSError as err:
            self._count(5)
            remove(made, self._top)
            if err.errno not in _THERE:
                raise
            return False
        self._remove_old()
        return True

    def _remove_old(self) -> None:
        """Remove what the dead left: done by the one that makes a barrier, so once for all of its processes."""
        self._count(2)
        with suppress(OSError):
            now = os.stat(f"{self._named()}/state", dir_fd=self._top).st_mtime  # the file system's clock
            remove_old(self._top, now, OLD)

    # -- arriving --------------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        if not self._create(self._own):
            raise SquashmountError(
                f"Rank {self._me.rank} is in the barrier {self._name} already.",
                details="one arrival per container is expected, and one container of each rank at a time",
                hint="one container on each node: --annotation squashmount.slurm-sync=node",
            )
        number, members, level = self._me.rank, self._me.size, 0
        while True:
            group, groups = number // FAN, -(-members // FAN)
            there = len(self._listed(f"{level}.{group}"))
            if there < min(FAN, members - group * FAN):
                return
            if groups == 1:
                if self._create("end"):
                    self._finish()
                return
            number, members, level = group, groups, level + 1
            # two that find a group full go on both: one of them may die
            self._create(os.path.join(f"{level}.{number // FAN}", str(number)))

    def _finish(self) -> None:
        self._count()
        # first out of the way of the next barrier, whose processes may come as soon as anybody is told
        self._rename(self._named(), self._named(self._word))
        self._tell("go")

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _released(self) -> bool:
        """Look once; SquashmountError when the others have given up."""
        self._looks += 1
        word, verdict = self._state()
        if word != self._word:
            # our own arrival keeps the directory from being removed by others like us
            raise SquashmountError(f"The barrier {self._name} was removed from {self._directory} by somebody.")
        if verdict.startswith("stopped"):
            raise SquashmountError(verdict.removeprefix("stopped "))
        return verdict == "go"

    def _give_up(self) -> None:
        """End it for all. Return when all are there after all, else SquashmountError."""
        begin = time.monotonic()
        if self._create("end"):
            arrived = self._arrived()
            if len(arrived) >= self._me.size:
                self._finish()
                return
            reason = self._reason(arrived)
            self._tell(f"stopped {reason}")
            raise SquashmountError(reason)
        while not self._released():
            if time.monotonic() - begin > _GRACE:
                raise SquashmountError(f"The process that was to end the barrier {self._name} died.")
            time.sleep(pause(begin - self._begin, self._me.size))

    def _arrived(self) -> dict[int, str]:
        found = {}
        for group in range(-(-self._me.size // FAN)):
            with suppress(FileNotFoundError):
                for name in self._listed(f"0.{group}"):
                    rank, _, node = name.partition("@")
                    if rank.isdecimal():
                        found[int(rank)] = node
        return found

    def _reason(self, arrived: dict[int, str]) -> str:
        count = self._me.size - len(arrived)
        who = _shown(self._missing(arrived))
        return f"{count} of {self._me.size} containers did not come to the barrier in {self._timeout:g} s: {who}."

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Take the own arrival away, and each directory it was the last in."""
        path, level, number, members = self._own, 0, self._me.rank, self._me.size
        with suppress(OSError):  # ENOTEMPTY: others are still there
            while True:
                self._count(2)
                with suppress(FileNotFoundError):
                    os.unlink(path, dir_fd=self._fd)
                os.rmdir(os.path.dirname(path), dir_fd=self._fd)
                if members <= FAN:
                    break
                number, members, level = number // FAN, -(-members // FAN), level + 1
                path = os.path.join(f"{level}.{number // FAN}", str(number))
            self._count(8)
            remove(self._named(self._word), self._top)

    # -- the file system -------------------------------------------------------------------------------------------

    def _count(self, requests: int = 1) -> None:
        self._requests += requests

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _named(self, word: str = "") -> str:
        return f".{self._name}.{word}" if word else self._name

    def _rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._top, dst_dir_fd=self._top)

    def _opened(self, path: str, flags: int) -> int:
        self._count()
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=self._fd)

    def _state(self) -> tuple[str, str]:
        """Return word and verdict; "" for none."""
        try:
            with open(self._opened("state", os.O_RDONLY), encoding="utf-8", errors="replace") as file:
                _check_ours(file.fileno(), os.path.join(self._directory, self._name, "state"), stat.S_ISREG)
                text = file.read(_LONGEST_STATE)
        except OSError as err:
            if err.errno not in _GONE:
                raise
            return "", ""
        word, _, rest = text.partition("\n")
        # half a line is one that is being written
        return word, _shown(rest[:-1]) if rest.endswith("\n") else ""

    def _tell(self, verdict: str) -> None:
        with open(self._opened("state", os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as file:
            file.write(f"{verdict}\n".encode(errors="replace"))

    def _create(self, path: str) -> bool:
        """Make an empty file, and its directory when that is missing; tell whether it is new."""
        while True:
            try:
                os.close(self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            except FileNotFoundError:
                if "/" not in path:
                    raise
                self._count()
                with suppress(FileExistsError):
                    os.mkdir(os.path.dirname(path), 0o700, dir_fd=self._fd)
            else:
                return True

    def _listed(self, path: str) -> list[str]:
        fd = self._opened(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = os.listdir(fd)
        finally:
            os.close(fd)
        self._names += len(names)
        return names


def pause(waited: float, size: int) -> float:
    """Return the seconds until the next look: an eighth of what was waited, so that a release is seen soon.

    Never so short that `size` processes would ask more than _REQUESTS_PER_SECOND.
    """
    return max(min(max(_SHORTEST, waited / 8), _LONGEST), size / _REQUESTS_PER_SECOND)


def _shown(text: str) -> str:
    # what others may have written goes to a terminal
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _check_ours(fd: int, path: str, is_kind: Callable[[int], bool]) -> None:
    """Raise SquashmountError for what others own or can write, or what is of another kind."""
    found = os.fstat(fd)
    if not is_kind(found.st_mode):
        raise SquashmountError(f"{path} is not what a barrier makes.", hint="remove it")
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SquashmountError(
            f"{path} belongs to another user, or others can write to it.",
            details="what they say there would be believed",
            hint="SQUASHMOUNT_SYNC_DIR: a directory of your own, on a file system that all nodes share",
        )
