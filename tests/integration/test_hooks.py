"""The hook under real Podman and its runtimes: what a module injects is inside, and what is refused does not run."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Done, Node, User, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}"))
    for name in ("crun", "runc")
]

MODULE = """
help = "One of each."
allow_env = ["FLAVOUR"]
ldconfig = false
[[mounts]]
source = "{host}/lib*.so.1"
target = "/opt/lib/"
[[mounts]]
source = "{host}/data"
target = "/site"
[[mounts]]
source = "{host}/none"
optional = true
[[copies]]
source = "{host}/site.conf"
target = "/etc/site/site.conf"
mode = "0600"
[[devices]]
path = "/dev/fakegpu*"
[[devices]]
path = "/dev/nonesuch*"
[env]
set = {{ FLAVOUR_INSIDE = "<$FLAVOUR>" }}
prepend = {{ PATH = "/opt/bin" }}
unset = ["GREETING"]
pass = ["SLURM_JOB_ID"]
[[hooks]]
stage = "createContainer"
path = "{host}/chained"
args = ["chained", "{marks}/chained"]
"""


class Hooks:
    """A site's modules and policy, installed for one node."""

    def __init__(self, top: Path, node: Node) -> None:
        self.node, self.top = node, top
        self.modules, self.host, self.marks, self.dir = (top / name for name in ("modules", "host", "marks", "hooks.d"))
        for path in (self.modules, self.host / "data", self.marks):
            path.mkdir(parents=True)
        self.marks.chmod(0o777)
        for name in ("liba.so.1", "libb.so.1", "data/file", "site.conf"):
            (self.host / name).write_text(f"host's {name}\n")
        (self.host / "chained").write_text('#!/bin/sh\necho ran >> "$1"\n')
        (self.host / "chained").chmod(0o755)
        self.policy = top / "hooks.toml"
        self.rules("")
        self.hooks_command("install", "--dir", str(self.dir), "--policy", str(self.policy)).ok()

    def rules(self, text: str) -> None:
        self.policy.write_text(f'modules = ["{self.modules}"]\n{text}')

    def module(self, name: str, text: str) -> None:
        (self.modules / f"{name}.toml").write_text(text)

    def hooks_command(self, *argv: str) -> Done:
        command = str(self.node.product / "bin/squashmount-hooks")
        if argv[0] in {"install", "remove"}:  # the site's directory is root's
            return run(command, *argv)
        return self.node.run(command, *argv)

    def podman(self, *argv: str) -> Done:
        return self.node.podman("--hooks-dir", str(self.dir), *argv)


@pytest.fixture
def top(lab: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    # below the lab: the users must reach it, and pytest's own directories are closed
    path = lab / f"hooks-{abs(hash(request.node.name))}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def hooks(top: Path, compute: Node, busybox: str) -> Hooks:
    assert busybox
    return Hooks(top, compute)


LOOK = """
cat /opt/lib/liba.so.1 /opt/lib/libb.so.1 /site/file /etc/site/site.conf; stat -c %a /etc/site/site.conf
touch /site/new 2>/dev/null && echo writable
head -c 3 /dev/fakegpu0 | od -An -tx1; env | grep -E '^(FLAVOUR_INSIDE|PATH|GREETING|SLURM_JOB_ID)=' | sort
"""
SEEN = """host's liba.so.1
host's libb.so.1
host's data/file
host's site.conf
600
 00 00 00
FLAVOUR_INSIDE=<sweet>
PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
SLURM_JOB_ID=42"""


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("userns", ["", "keep-id"])
def test_a_module_injects_one_of_each(hooks: Hooks, busybox: str, fake_gpu: Path, runtime: str, userns: str) -> None:
    assert fake_gpu.exists()
    hooks.module("site", MODULE.format(host=hooks.host, marks=hooks.marks))
    hooks.node.env |= {"FLAVOUR": "sweet", "SLURM_JOB_ID": "42"}
    options = ["--annotation", "squashmount.site=on", *([f"--userns={userns}", "--user=0"] if userns else [])]
    done = hooks.podman("--runtime", runtime, "run", "--name", "one", *options, busybox, "sh", "-c", LOOK)
    assert done.ok() == SEEN
    assert (hooks.marks / "chained").read_text() == "ran\n"
    # a second start is the same container
    again = hooks.podman("--runtime", runtime, "start", "--attach", "one")
    assert again.ok() == SEEN
    said = hooks.hooks_command("log", "one").ok()
    assert "done: site: annotation squashmount.site=on" in said
    assert f"'{hooks.host}/liba.so.1' is mounted on '/opt/lib/liba.so.1'" in said
    assert "not done: site: the device /dev/nonesuch* is not on this host" in said
    # the plan is the one that was applied
    planned = ("plan", busybox, "--store", str(hooks.node.stores[0]), "--policy", str(hooks.policy), "--json")
    table = json.loads(hooks.hooks_command(*planned, "--annotation", "squashmount.site=on").ok())
    assert f"plan {table['hash']}" in said


def test_the_second_container_of_an_image_uses_the_remembered_plan(hooks: Hooks, busybox: str) -> None:
    hooks.module("a", f'[when]\nalways = true\n[[mounts]]\nsource = "{hooks.host}/data"\ntarget = "/site"')
    for name, how in (("one", "new"), ("two", "remembered"), ("three", "remembered")):
        assert hooks.podman("run", "--name", name, busybox, "cat", "/site/file").ok() == "host's data/file"
        assert hooks.hooks_command("log", name).ok().endswith(f" ({how})")
    # a container that installed libraries is looked at again
    hooks.podman(
        "run", "--name", "own", busybox, "sh", "-c", "cat /site/file; mkdir -p /usr/lib; echo > /usr/lib/x"
    ).ok()
    hooks.podman("start", "--attach", "own").ok()
    assert hooks.hooks_command("log", "own").ok().endswith(" (new)")


def test_nothing_applies(hooks: Hooks, busybox: str) -> None:
    hooks.module("site", MODULE.format(host=hooks.host, marks=hooks.marks))
    assert hooks.podman("run", "--rm", busybox).ok() == "hello from /work"
    done = hooks.podman("run", "--name", "plain", busybox, "sh", "-c", "ls /opt /site /etc/site")
    assert done.code != 0
    done = hooks.hooks_command("log", "plain")
    assert done.code == 3
    assert "There is no log of a container" in done.err


def test_what_the_host_lacks_stops_the_container_with_a_sentence(hooks: Hooks, busybox: str) -> None:
    hooks.module("fabric", '[when]\nenv = ["SLURM_JOB_ID"]\n[[mounts]]\nsource = "/opt/fabric/lib/libfabric.so.1"')
    assert hooks.podman("run", "--rm", busybox).ok() == "hello from /work"
    hooks.node.env["SLURM_JOB_ID"] = "42"
    done = hooks.podman("run", "--name", "stopped", busybox, "echo", "ran")
    assert done.code in {125, 126, 127}
    assert "ran" not in done.out
    sentence = "The container is not started: fabric: /opt/fabric/lib/libfabric.so.1 is not on this host."
    assert done.err.count(sentence) == 1
    assert f"refused: {sentence}" in hooks.hooks_command("log", "stopped").ok()
    hooks.rules('missing_required = "warn"')
    assert hooks.podman("run", "--rm", busybox).ok() == "hello from /work"
    hooks.rules("")
    assert hooks.podman("run", "--rm", "--annotation", "squashmount.fabric=off", busybox).ok() == "hello from /work"


def test_installed_as_the_command_advises(hooks: Hooks, busybox: str) -> None:
    hooks.module("a", '[when]\nalways = true\n[env]\nset = { GREETING = "hooked" }')
    node = hooks.node
    said = node.run(str(node.product / "bin/squashmount-hooks"), "install", "--policy", str(hooks.policy)).ok()
    assert node.podman("run", "--rm", busybox).ok() == "hello from /work"
    advised = [line.strip() for line in said.splitlines() if line.strip().startswith("hooks_dir")]
    conf = node.base / "containers.conf"
    conf.write_text(conf.read_text().replace("[engine]\n", f"[engine]\n{advised[0]}\n"))
    assert node.podman("run", "--rm", busybox).ok() == "hooked from /work"
    assert f"installed: {node.user.home}/.config" in hooks.hooks_command("list", "--policy", str(hooks.policy)).ok()
    node.run(str(node.product / "bin/squashmount-hooks"), "remove").ok()
    assert node.podman("run", "--rm", busybox).ok() == "hello from /work"


def test_podman_starts_it_only_where_an_annotation_is_ours(hooks: Hooks, busybox: str) -> None:
    hooks.module("a", '[env]\nset = { GREETING = "hooked" }')
    place = ("--dir", str(hooks.dir), "--policy", str(hooks.policy))
    hooks.hooks_command("install", "--annotated", *place).ok()
    # a broken policy is what every start of the hook would tell
    hooks.rules("nonsense = 1")
    assert hooks.podman("run", "--rm", busybox).ok() == "hello from /work"
    assert "nonsense" in hooks.podman("run", "--rm", "--annotation", "squashmount.a=on", busybox).err
    hooks.rules("")
    assert hooks.podman("run", "--rm", "--annotation", "squashmount.a=on", busybox).ok() == "hooked from /work"
    hooks.module("b", "[when]\nalways = true")
    refused = hooks.hooks_command("install", "--annotated", *place)
    assert refused.code == 2
    assert "the hook would not run for b" in refused.err


HOSTILE = r"""
FROM {base}
RUN mkdir -p /traps && ln -s /etc/passwd /traps/forbidden && ln -s ../../../../../../../..{host} /traps/relative && \
    ln -s {host} /traps/absolute && ln -s loop /traps/loop && mkfifo /traps/fifo && ln -s /proc/1/root /traps/magic && \
    printf x > "$(printf '/traps/two\nlines')" && ln -s /traps /traps/inside
"""


@pytest.fixture
def hostile(hooks: Hooks, login: Node, top: Path, busybox: str) -> str:
    """An image full of links that want out, pushed and pulled so that it is an ordinary one."""
    name = "localhost/hostile:1"
    context = top / "hostile"
    context.mkdir()
    (context / "Containerfile").write_text(HOSTILE.format(base=busybox, host=hooks.host))
    login.podman("build", "--isolation=chroot", "--network=host", "-t", name, str(context)).ok()
    login.migrate("mig", name, str(hooks.node.stores[0])).ok()
    return name


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/traps/forbidden", "(leads to '/etc/passwd') is forbidden by the policy"),
        ("/traps/relative/data", "which does not exist"),
        ("/traps/absolute/data", "which does not exist"),
        ("/traps/loop/x", "cannot be resolved: Too many levels of symbolic links"),
        ("/traps/fifo", "neither a file nor a directory"),
        ("/traps/magic/tmp", "(leads to '/proc/1/root/tmp') is forbidden"),
    ],
)
def test_a_hostile_image_reaches_nothing_outside(hooks: Hooks, hostile: str, target: str, said: str) -> None:
    before = sorted(path.name for path in hooks.host.rglob("*"))
    for kind in ("mounts", "copies"):
        hooks.module(
            "trap", f'[when]\nalways = true\n[[{kind}]]\nsource = "{hooks.host}/site.conf"\ntarget = "{target}"'
        )
        done = hooks.podman("run", "--rm", hostile, "true")
        assert done.code != 0
        assert said in done.err
    assert sorted(path.name for path in hooks.host.rglob("*")) == before
    hooks.module(
        "trap", f'[when]\nalways = true\n[[mounts]]\nsource = "{hooks.host}/site.conf"\ntarget = "/traps/inside/new"'
    )
    assert hooks.podman("run", "--rm", hostile, "cat", "/traps/new").ok() == "host's site.conf"


def test_a_label_of_the_image_switches_a_module_on(hooks: Hooks, busybox: str) -> None:
    hooks.module("label", '[when]\nlabel = ["made.by=squashmount"]\n[env]\nset = { GREETING = "labelled" }')
    assert hooks.podman("run", "--rm", busybox).ok() == "labelled from /work"
    assert hooks.podman("run", busybox).ok() == "labelled from /work"


def test_an_image_switches_no_module(
    hooks: Hooks, login: Node, make_node: Callable[..., Node], root: User, store: Path, top: Path, busybox: str
) -> None:
    hooks.module("mine", '[env]\nset = { GREETING = "switched" }')
    name = "localhost/switches:1"
    context = top / "switches"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {busybox}\nENV OWN=1\n")
    build = ("build", "--format=oci", "--annotation", "squashmount.mine=on", "--isolation=chroot", "--network=host")
    login.podman(*build, "-t", name, str(context)).ok()
    login.migrate("mig", name, str(store)).ok()
    sentence = "carries the annotation squashmount.mine=on, but only users and sites switch modules."
    rootful = make_node(root, stores=(store,))
    for node, more in ((hooks.node, ()), (login, ()), (rootful, ("--cgroups=disabled", "--pid=private"))):
        podman = ("--hooks-dir", str(hooks.dir), "run", "--rm", *more)
        done = node.podman(*podman, name)
        # Podman passed the image's annotations on before 4.6
        assert sentence in done.err if done.code else done.ok() == "hello from /work"
        done = node.podman(*podman, "--annotation", "squashmount.mine=on", name)
        assert done.code != 0
        assert sentence in done.err
        assert node.podman(*podman, "--annotation", "squashmount.mine=off", name).ok() == "hello from /work"
        assert node.podman(*podman, "--annotation", "squashmount.mine=yes", name).ok() == "switched from /work"
    # the same image without the annotation, as before
    for _ in range(2):
        done = hooks.podman("run", "--rm", "--annotation", "squashmount.mine=on", busybox)
        assert done.ok() == "switched from /work"
    program = str(login.product / "bin/squashmount-hooks")
    for node in (hooks.node, login):  # from the squash file, from what Podman keeps unpacked
        done = node.run(program, "plan", name, "--policy", str(hooks.policy))
        assert done.code == 11
        assert sentence in done.out
        off = ("--annotation", "squashmount.mine=off")
        assert sentence not in node.run(program, "plan", name, "--policy", str(hooks.policy), *off).ok()
    login.podman("rmi", name).ok()


@pytest.mark.parametrize(
    ("kind", "target", "place", "said"),
    [
        ("mounts", "/opt", "/opt/data", "it would hide '/opt/data', a volume of the container"),
        ("mounts", "/opt/lib/new", "/opt/lib", "'/opt/lib' is a volume of the container"),
        ("mounts", "/v/link/passwd", "/v", "'/v' is a volume of the container"),
        ("copies", "/v/conf", "/v", "'/v' is a volume of the container"),
    ],
)
def test_a_volume_of_the_user_stays_his(  # nothing is hidden in it, made in it, or reached by its links
    hooks: Hooks, busybox: str, kind: str, target: str, place: str, said: str
) -> None:
    mine = hooks.node.user.home / "mine"
    hooks.node.run("sh", "-c", f"mkdir {mine}; ln -s /etc {mine}/link").ok()
    source = hooks.host / ("data" if target == "/opt" else "site.conf")
    hooks.module("a", f'[when]\nalways = true\n[[{kind}]]\nsource = "{source}"\ntarget = "{target}"')
    done = hooks.podman("run", "--rm", "-v", f"{mine}:{place}", busybox, "echo", "ran")
    assert done.code != 0
    assert said in done.err
    assert hooks.node.run("ls", str(mine)).ok() == "link"
    assert hooks.podman("run", "--rm", "-v", f"{mine}:/elsewhere", busybox, "ls", "/elsewhere").ok() == "link"
    hooks.node.run("rm", "-r", str(mine)).ok()


def test_what_podman_mounts_is_in_nobodys_way(hooks: Hooks, busybox: str) -> None:
    source = hooks.host / "site.conf"
    rules = [f'[[mounts]]\nsource = "{source}"\ntarget = "{place}"\n' for place in ("/run/x/y", "/etc/z")]
    hooks.module("a", "[when]\nalways = true\n" + "".join(rules))
    for options in ((), ("--network=host", "--ipc=host", "--pid=host"), ("--read-only",), ("--tmpfs=/run",)):
        done = hooks.podman("run", "--rm", *options, busybox, "cat", "/run/x/y", "/etc/z")
        assert done.ok() == "host's site.conf\nhost's site.conf"


def test_ldconfig_sees_the_injected_library(hooks: Hooks, debian: str) -> None:
    library = hooks.host / "libinjected.so.1"
    run("gcc", "-shared", "-Wl,-soname,libinjected.so.1", "-o", str(library), "-x", "c", "/dev/null").ok()
    rule = f'source = "{library}"\ntarget = "/usr/lib/libinjected.so.1"'
    look = ("--entrypoint", "sh", debian, "-c", "/sbin/ldconfig -p | grep libinjected")
    hooks.module("cuda", f"[when]\nalways = true\n[[mounts]]\n{rule}\n")
    assert hooks.podman("run", "--rm", *look).code == 1
    hooks.module("cuda", f"ldconfig = true\n[when]\nalways = true\n[[mounts]]\n{rule}\n")
    assert "=> /lib/libinjected.so.1" in hooks.podman("run", "--rm", *look).ok()


# Podman 5.4 has runc 1.1 set pids.max whatever --pids-limit says, in a cgroup without that controller
@pytest.mark.parametrize("runtime", RUNTIMES[:1] if "SQUASHMOUNT_PLATFORM" in os.environ else RUNTIMES)
def test_root_gets_device_nodes(
    top: Path, make_node: Callable[..., Node], root: User, store: Path, busybox: str, fake_gpu: Path, runtime: str
) -> None:
    node = make_node(root, stores=(store,))
    hooks = Hooks(top, node)
    rules = f'[[mounts]]\nsource = "{hooks.host}/data"\ntarget = "/site"\n'
    rules += f'[[copies]]\nsource = "{hooks.host}/site.conf"\ntarget = "/etc/site.conf"'
    hooks.module("gpu", f"[when]\nalways = true\n[[devices]]\npath = '/dev/fakegpu*'\n{rules}")
    look = f"stat -c %F {fake_gpu}; head -c 2 {fake_gpu} | od -An -tx1; cat /site/file /etc/site.conf"
    # crun wants to raise RLIMIT_MEMLOCK for a cgroup of root's, which not every machine the tests run on allows; Podman
    # allows only crun no cgroup
    cgroup = {"crun": "--cgroups=disabled", "runc": "--pids-limit=-1"}[runtime]
    done = hooks.podman("--runtime", runtime, "run", "--rm", cgroup, "--pid=private", busybox, "sh", "-c", look)
    assert done.ok().splitlines() == ["character special file", " 00 00", "host's data/file", "host's site.conf"]
