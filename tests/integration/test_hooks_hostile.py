"""Hostile root file systems under the real hook: nothing outside is touched or waited for; refusals are sentences.

`podman run --rootfs DIR` takes any tree, also what no build could make. The places its links want to reach could be
written by the user, so an escape would show.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elf_files import library
from lab import Done, Node, User, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}"))
    for name in ("crun", "runc")
]
STYLES = ["absolute", "relative"]


class Trap:
    """A root file system, a place outside of it that everybody can write, and one module that is always on."""

    def __init__(self, top: Path, node: Node) -> None:
        self.node, self.top = node, top
        self.root, self.outside, self.host = top / "root", top / "outside", top / "host"
        for path in (self.root / "bin", self.root / "etc", self.root / "lib", self.outside, self.host, top / "modules"):
            path.mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "/bin/busybox", self.root / "bin/busybox")
        for name in ("file", "ld.so.cache", "ld.so.conf", "libx.so.1", "fakegpu0"):
            (self.outside / name).write_text(f"outside's {name}\n")
        (self.host / "file").write_text("host's file\n")
        library(self.host / "libx.so.1")
        (top / "hooks.toml").write_text(f'modules = ["{top}/modules"]\nshipped = false\n')
        install = ("install", "--dir", str(top / "hooks.d"), "--policy", str(top / "hooks.toml"))
        run(str(node.product / "bin/squashmount-hooks"), *install).ok()

    def module(self, text: str) -> None:
        (self.top / "modules/trap.toml").write_text(f"{text}\n[when]\nalways = true\n")

    def link(self, place: str, target: Path, style: str) -> None:
        """Put a link in the root that leads to a path of the host, unless it is followed inside."""
        path = self.root / place
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target if style == "absolute" else "../" * 30 + str(target)[1:])

    def run(self, script: str, *options: str, runtime: str = "crun") -> Done:
        """Run a container; fail when anything outside has changed."""
        run("chown", "-hR", str(self.node.user.uid), str(self.root), str(self.outside)).ok()
        run("chmod", "-R", "a+rwX", str(self.outside)).ok()
        before = self.seen()
        command = (*options, "--rootfs", str(self.root), "/bin/busybox", "sh", "-c", script)
        done = self.node.podman(
            "--hooks-dir", str(self.top / "hooks.d"), "--runtime", runtime, "run", "--rm", *command, timeout=60
        )
        assert self.seen() == before, "something outside of the root was touched"
        return done

    def seen(self) -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for path in (self.outside, *self.outside.rglob("*"), self.host, *self.host.rglob("*")):
            info = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
            found[str(path)] = (info.st_mode, info.st_uid, info.st_mtime_ns, content)
        return found

    def inside(self, path: Path) -> Path:
        """Make the directory inside the root that has the path of one outside."""
        made = self.root / str(path)[1:]
        made.mkdir(parents=True, exist_ok=True)
        return made


@pytest.fixture
def trap(lab: Path, make_node: Callable[..., Node], alice: User, request: pytest.FixtureRequest) -> Iterator[Trap]:
    top = lab / f"trap-{abs(hash(request.node.name))}"
    yield Trap(top, make_node(alice))
    run("rm", "-rf", "--one-file-system", str(top)).ok()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("place", "rule"),
    [
        ("trap", '[[mounts]]\nsource = "{host}/file"\ntarget = "/trap/file"'),
        ("trap", '[[mounts]]\nsource = "{host}"\ntarget = "/trap/deep/er"'),
        ("trap", '[[copies]]\nsource = "{host}/file"\ntarget = "/trap/file"'),
        ("run/squashmount", '[[libraries]]\npath = "{host}/libx.so.1"'),
    ],
    ids=["mount", "directory", "copy", "library"],
)
def test_what_a_rule_puts_behind_an_escaping_link(trap: Trap, place: str, rule: str, style: str) -> None:
    trap.module(rule.format(host=trap.host))
    trap.link(place, trap.outside, style)
    done = trap.run("echo ran")
    assert done.code != 0
    assert "ran" not in done.out
    assert done.err.count("The container is not started: trap: ") == 1
    assert "which does not exist" in done.err
    # the same path inside: that is where the link leads for the container, too
    inside = trap.inside(trap.outside)
    assert trap.run(f"find {trap.outside} | sort").ok().startswith(f"{trap.outside}\n{trap.outside}/")
    assert any(inside.rglob("*")), "a mount point or a file was made inside"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("style", STYLES)
def test_devices_behind_an_escaping_link(trap: Trap, fake_gpu: Path, style: str, runtime: str) -> None:
    trap.module(f'[[devices]]\npath = "{fake_gpu}"')
    assert trap.run(f"[ -c {fake_gpu} ] && echo there", runtime=runtime).ok() == "there"
    trap.link("dev", trap.outside, style)
    # crun 1.8 and runc 1.1 follow such a link themselves: the container must not get as far as that
    for _ in ("nothing there inside", "a directory inside"):
        done = trap.run(f"[ -c {fake_gpu} ] && echo there", runtime=runtime)
        assert done.code != 0
        assert "'/dev' in the image is not a directory of its own: no device can be put there" in done.err
        trap.inside(trap.outside)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("place", ["etc", "etc/ld.so.cache", "etc/ld.so.conf"])
def test_ldconfig_writes_inside_only(trap: Trap, place: str, style: str, runtime: str) -> None:
    rule = f'[[mounts]]\nsource = "{trap.host}/libx.so.1"\ntarget = "/lib/libx.so.1"'
    trap.module(f"ldconfig = true\n{rule}")
    trap.link(place, trap.outside if place == "etc" else trap.outside / Path(place).name, style)
    done = trap.run("echo ran; cat /etc/ld.so.cache", runtime=runtime)
    if place != "etc":
        # the cache is written anew and takes the link's place, rename(2)
        assert done.ok().startswith("ran")
        assert "libx.so.1" in done.out
    else:
        assert "ran" not in done.out
        assert done.err
        trap.inside(trap.outside)
        assert "libx.so.1" in trap.run("echo ran; cat /etc/ld.so.cache", runtime=runtime).ok()


@pytest.mark.parametrize("place", ["ld.so.conf", "ld.so.conf.d/fifo"])
def test_ldconfig_that_would_wait_for_ever(trap: Trap, place: str) -> None:
    if place == "ld.so.conf":
        os.mkfifo(trap.root / "etc/ld.so.conf")
    else:
        odd_linker(trap)
    trap.module("ldconfig = true")
    done = trap.run("echo ran")
    assert done.code != 0
    assert "ran" not in done.out
    sentence = (
        f"The container is not started: '/etc/{place}' in the image is no file: the loader's cache cannot be made."
    )
    logs = list((trap.node.runtime / "squashmount/hooks").glob("*.log"))
    assert done.err.count(sentence) == 1
    assert sentence in "".join(path.read_text() for path in logs)


def test_ldconfig_that_waits_is_given_up(trap: Trap) -> None:
    trap.module("ldconfig = true")
    (trap.root / "etc/ld.so.conf").write_text("include /late/*\n")
    fifo = trap.top / "late"
    fifo.mkdir(mode=0o755)
    os.mkfifo(fifo / "fifo")
    # what the image has is seen before it starts; this is there only when ldconfig runs
    done = trap.run("echo ran", "--volume", f"{fifo}:/late")
    assert done.code != 0
    assert "ran" not in done.out
    logs = "".join(path.read_text() for path in (trap.node.runtime / "squashmount/hooks").glob("*.log"))
    assert "refused: The container's ld.so.cache cannot be made." in logs
    assert "ldconfig did not finish in 20 s." in logs


def odd_linker(trap: Trap) -> None:
    """Everything the loader's configuration must not be."""
    (trap.root / "etc/ld.so.conf").write_text(
        f"include /etc/ld.so.conf.d/*\n{trap.outside}\n/escape/absolute\n/escape/relative\n/opt/two\nlines\n"
    )
    (trap.root / "etc/ld.so.conf.d").mkdir()
    (trap.root / "etc/ld.so.conf.d/a\nb.conf").write_text("/lib\n")
    (trap.root / "etc/ld.so.conf.d/circle").write_text("include /etc/ld.so.conf\n")
    os.mkfifo(trap.root / "etc/ld.so.conf.d/fifo")
    trap.link("etc/ld.so.conf.d/absolute", trap.outside / "ld.so.conf", "absolute")
    trap.link("etc/ld.so.conf.d/relative", trap.outside / "ld.so.conf", "relative")
    trap.link("escape/absolute", trap.outside, "absolute")
    trap.link("escape/relative", trap.outside, "relative")
    os.mkfifo(trap.root / "lib/libx.so.1")
    trap.link("lib/libx.so", trap.outside / "libx.so.1", "absolute")
    library(trap.root / "lib/libx.so.1\nrefused: a line of the image's own", soname="libx.so.1")
    (trap.root / "lib/self").symlink_to("self")


@pytest.mark.parametrize("planner", ["", 'planner = "mpich"'])
def test_the_loaders_configuration_of_a_hostile_image(trap: Trap, planner: str) -> None:
    odd_linker(trap)
    trap.module(f'{planner}\n[[libraries]]\npath = "{trap.host}/libx.so.1"')
    done = trap.run("echo ran; ls /run/squashmount/lib 2>/dev/null")
    # it has no MPI that a planner could take the place of
    assert done.out.splitlines() == (["ran"] if planner else ["ran", "libx.so.1"])
    logs = list((trap.node.runtime / "squashmount/hooks").glob("*.log"))
    text = "".join(path.read_text() for path in logs)
    assert text.count(" done: trap: ") + text.count(" refused: ") >= 1
    for line in text.splitlines():
        # no name made a line of its own
        assert line.split(" ", 2)[1] in {"done:", "not", "warning:", "refused:", "plan"}
        assert not line.split(" ", 1)[1].startswith("refused: a line of the image's own")


@pytest.mark.parametrize("kind", ["huge", "fifo", "directory", "absolute", "relative"])
def test_a_loader_cache_that_is_none(trap: Trap, kind: str) -> None:
    cache = trap.root / "etc/ld.so.cache"
    if kind == "huge":
        with cache.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "fifo":
        os.mkfifo(cache)
    elif kind == "directory":
        cache.mkdir()
    else:
        trap.link("etc/ld.so.cache", trap.outside / "ld.so.cache", kind)
    trap.module(f'[[libraries]]\npath = "{trap.host}/libx.so.1"')
    done = trap.run("echo ran; ls /run/squashmount/lib")
    assert done.ok().splitlines() == ["ran", "libx.so.1"], "the loader does without such a cache, too"
    said = trap.node.run(
        str(trap.node.product / "bin/squashmount-hooks"),
        "plan",
        "--rootfs",
        str(trap.root),
        "--policy",
        str(trap.top / "hooks.toml"),
    ).ok()
    if kind in {"huge", "fifo", "directory"}:
        assert "ld.so.cache" in said


def test_names_with_newlines_as_destinations(trap: Trap) -> None:
    (trap.root / "trap").mkdir()
    (trap.root / "trap/two\nlines").write_text("image's\n")
    trap.link("trap/link", Path("/trap/two\nlines"), "absolute")
    trap.link("trap/gone", Path("/no\nrefused: where"), "relative")
    for kind in ("mounts", "copies"):
        trap.module(f'[[{kind}]]\nsource = "{trap.host}/file"\ntarget = "/trap/link"')
        assert trap.run("cat /trap/two*").ok() == "host's file"
        trap.module(f'[[{kind}]]\nsource = "{trap.host}/file"\ntarget = "/trap/gone"')
        done = trap.run("echo ran")
        assert done.code != 0
        assert "'/trap/gone' in the image leads to '/no\\nrefused: where', which does not exist" in done.err
