"""The test lab: users, nodes, a registry and images, all real, inside the namespaces scripts/lab has made.

A *node* is a user with a graphroot, a runroot and an XDG_RUNTIME_DIR of his own: Podman makes a separate pause process,
user namespace and mount namespace for it, as on another machine.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("SQUASHMOUNT_TEST_CACHE", "/var/cache/squashmount-tests"))
TIMEOUT = 120


@dataclass(frozen=True)
class Done:
    """A program that ended: what it was, its status and what it said."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    def ok(self) -> str:
        """Return the output without the final newline; fail the test with everything known otherwise."""
        assert self.code == 0, f"$ {shlex.join(self.argv)}\nexit {self.code}\n{self.out}\n{self.err}"
        return self.out.rstrip("\n")


def run(*argv: str, env: dict[str, str] | None = None, timeout: float = TIMEOUT, **options: object) -> Done:
    """Run as root. A program that hangs is killed with its whole session."""
    with subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate(timeout=10)
            raise AssertionError(f"$ {shlex.join(argv)}\ndid not end in {timeout} s\n{out!r}\n{err!r}") from None
    return Done(argv, process.returncode, os.fsdecode(out), os.fsdecode(err))


@dataclass(frozen=True)
class User:
    """An ordinary user of the lab, or root."""

    name: str
    uid: int
    gid: int
    home: Path

    def prefix(self) -> list[str]:
        """Return what to put before a command to run it as this user in a cgroup of his own."""
        if self.uid == 0:
            return []
        enter = (
            f"echo $$ > /sys/fs/cgroup/{self.name}/cgroup.procs; exec setpriv --reuid {self.uid} --regid {self.gid} "
        )
        return ["bash", "-c", enter + '--init-groups --reset-env "$@"', "as"]

    def run(self, *argv: str, env: dict[str, str] | None = None, **options: object) -> Done:
        """Run a command as this user with exactly this environment (and a PATH, HOME and USER)."""
        full = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        full |= {"HOME": str(self.home), "USER": self.name, **(env or {})}
        # --reset-env of setpriv would drop ours: env(1) sets it after the change of user
        words = [f"{key}={value}" for key, value in full.items()]
        return run(*self.prefix(), "env", "-i", *words, *argv, env=full, cwd=str(self.home), **options)  # type: ignore[arg-type]


def make_user(lab: Path, name: str, uid: int, *, subids: int | None = 65536) -> User:
    """Make a user in the lab's private /etc with one range of `subids` subordinate ids, or none."""
    home = lab / name
    run("groupadd", "-g", str(uid), name).ok()
    run("useradd", "-M", "-d", str(home), "-s", "/bin/bash", "-u", str(uid), "-g", str(uid), name).ok()
    for table in ("/etc/subuid", "/etc/subgid"):
        path = Path(table)
        lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{name}:")]
        if subids:
            lines.append(f"{name}:{uid * 100000}:{subids}")
        path.write_text("".join(f"{line}\n" for line in lines))
    home.mkdir(mode=0o755)
    os.chown(home, uid, uid)
    runtime = Path(f"/run/user/{uid}")
    runtime.mkdir(mode=0o700)
    os.chown(runtime, uid, uid)
    cgroup = Path("/sys/fs/cgroup") / name
    cgroup.mkdir()
    for path in (cgroup, cgroup / "cgroup.procs", cgroup / "cgroup.subtree_control", cgroup / "cgroup.threads"):
        os.chown(path, uid, uid)
    return User(name, uid, uid, home)


@dataclass
class Node:
    """Podman of one user on one machine, seeing `stores` as additional image stores."""

    user: User
    name: str
    product: Path
    stores: tuple[Path, ...] = ()
    mount_program: str = ""
    ignore_chown_errors: bool = False
    env: dict[str, str] = field(default_factory=lambda: {"SQUASHMOUNT_LINGER": "1"})

    def __post_init__(self) -> None:
        """Make the directories and the configuration files."""
        self.base = self.user.home / self.name
        self.graphroot = self.base / "graph"
        self.runtime = Path(f"/run/user/{self.user.uid}/{self.name}")
        self.runroot = self.runtime / "c"
        for path in (self.base, self.runtime):
            path.mkdir(mode=0o700, parents=True)
            os.chown(path, self.user.uid, self.user.gid)
        self.configure()

    def configure(self) -> None:
        """Write storage.conf, containers.conf and policy.json."""
        program = self.mount_program or (str(self.product / "bin/squashmount-mount") if self.stores else "")
        options = [f"additionalimagestores = {json.dumps([str(store) for store in self.stores])}"]
        overlay = [f'mount_program = "{program}"'] if program else []
        if self.ignore_chown_errors:
            overlay.append('ignore_chown_errors = "true"')
        text = f'[storage]\ndriver = "overlay"\ngraphroot = "{self.graphroot}"\nrunroot = "{self.runroot}"\n'
        text += f'rootless_storage_path = "{self.graphroot}"\n'
        text += "[storage.options]\n" + "\n".join(options) + "\n[storage.options.overlay]\n" + "\n".join(overlay) + "\n"
        self._write("storage.conf", text)
        engine = f'cgroup_manager = "cgroupfs"\nevents_logger = "file"\ntmp_dir = "{self.runtime}/libpod"\n'
        containers = 'netns = "host"\nlog_driver = "k8s-file"\ndefault_sysctls = []\n'
        self._write("containers.conf", f"[engine]\n{engine}[containers]\n{containers}")
        self._write("registries.conf", 'unqualified-search-registries = ["localhost"]\n')
        policy = '{"default": [{"type": "insecureAcceptAnything"}]}'
        script = 'mkdir -p ~/.config/containers && echo "$0" > ~/.config/containers/policy.json'
        self.user.run("sh", "-c", script, policy).ok()

    def _write(self, name: str, text: str) -> None:
        (self.base / name).write_text(text)
        os.chown(self.base / name, self.user.uid, self.user.gid)

    def environment(self) -> dict[str, str]:
        """Return the environment Podman runs in on this node."""
        return {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "CONTAINERS_STORAGE_CONF": str(self.base / "storage.conf"),
            "CONTAINERS_CONF": str(self.base / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.base / "registries.conf"),
            "TMPDIR": "/var/tmp",
            **self.env,
        }

    def run(self, *argv: str, timeout: float = TIMEOUT) -> Done:
        """Run any command as the user on this node."""
        return self.user.run(*argv, env=self.environment(), timeout=timeout)

    @contextmanager
    def started(self, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command as the user on this node; it is killed if it has not ended by the end of the block."""
        environ = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": str(self.user.home), "USER": self.user.name}
        words = [f"{key}={value}" for key, value in {**environ, **self.environment()}.items()]
        command = [*self.user.prefix(), "env", "-i", *words, *argv]
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(command, stdin=none, stdout=pipe, stderr=pipe, cwd=str(self.user.home)) as child:
            try:
                yield child
            finally:
                child.kill()

    def podman(self, *argv: str, timeout: float = TIMEOUT) -> Done:
        """Run Podman."""
        return self.run("podman", *argv, timeout=timeout)

    def migrate(self, *argv: str, timeout: float = TIMEOUT) -> Done:
        """Run migrate2scratch."""
        return self.run(str(self.product / "bin/migrate2scratch"), *argv, timeout=timeout)

    def squashmount(self, *argv: str) -> Done:
        """Run squashmount inside this node's Podman namespace, where its servers live."""
        return self.podman("unshare", str(self.product / "bin/squashmount"), *argv)

    def state(self) -> Path:
        """Return where the servers of this node keep their state."""
        return self.runtime / "squashmount"

    def log(self) -> str:
        """Return the mount program's log."""
        path = self.state() / "log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """End everything of this node: containers, pause process, servers, files."""
        self.podman("rm", "--all", "--force", "--time=0")
        self.end_servers()
        # root's servers mount in the lab itself, and every namespace made later would copy what a killed one left
        for name in os.listdir(self.state()) if self.user.uid == 0 and self.state().is_dir() else ():
            mountpoint = self.state() / name / "m"
            if str(mountpoint) in Path("/proc/self/mounts").read_text():
                run("umount", "-l", str(mountpoint)).ok()
        for pause in self.runtime.glob("libpod/**/pause.pid"):
            self._end_pause_process(pause.read_text())
        for path in (self.base, self.runtime):
            run("rm", "-rf", "--one-file-system", str(path))

    def _end_pause_process(self, pid: str) -> None:
        """Kill it, if it is one of this user's: a test may have left the number of another process."""
        process = Path("/proc") / pid
        with suppress(FileNotFoundError, ProcessLookupError):
            if process.stat().st_uid in {self.user.uid, 0} and process.joinpath("comm").read_text() == "catatonit\n":
                os.kill(int(pid), signal.SIGKILL)

    def servers(self) -> list[int]:
        """Return the pids of this node's supervisors and workers: they keep their `alive` file open."""
        return [pid for pid in all_processes() if _has_open_below(pid, str(self.state()))]

    def end_servers(self) -> None:
        """Kill the servers by pid (a test that failed may have left them)."""
        for pid in self.servers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _has_open_below(pid: int, directory: str) -> bool:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
        return any(os.readlink(f"/proc/{pid}/fd/{name}").startswith(directory) for name in fds)
    except OSError:
        return False


def all_processes() -> list[int]:
    """Return every pid of the lab."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def free_port() -> int:
    """Return a loopback port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def registry(lab: Path) -> Iterator[str]:
    """Run a real registry on loopback; yields host:port."""
    port = free_port()
    data = lab / "registry"
    data.mkdir()
    config = lab / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (lab / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(f"http://127.0.0.1:{port}/v2/"), "the registry answers")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_for(condition: object, what: str, seconds: float = 20) -> None:
    """Poll until the condition holds; fail the test when it does not in time."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain: {what}"
        time.sleep(0.05)


def install_product(lab: Path) -> Path:
    """Install the project the way a site does: a wheel into a clean environment, no compiler on PATH."""
    source, venv = lab / "source", lab / "product"
    copy_checkout(source, "pyproject.toml", "README.md", "squashmount", "migrate", "oci_hooks", "storage_conf")
    python = os.path.realpath(os.path.join(os.environ.get("VIRTUAL_ENV", str(TOP / ".venv")), "bin/python"))
    run(python, "-m", "venv", str(venv)).ok()
    env = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run(str(venv / "bin/pip"), "install", "-q", "--only-binary=:all:", str(source), env=env, timeout=600).ok()
    shutil.rmtree(source)
    return venv


def copy_checkout(target: Path, *names: str) -> None:
    """Copy parts of the checkout to where every user can read them, without what a developer's tree has besides."""
    for name in names:
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(TOP / name, target / name)


def root_user(lab: Path) -> User:
    """Return root as a lab user: with a home of his own, the machine's stays as it is."""
    home = lab / "root"
    home.mkdir(mode=0o700, exist_ok=True)
    return User("root", 0, 0, home)


def image_store(info: dict[str, Any]) -> str | None:
    """Return the additional image store of `podman info`; Podman since 5.8 leaves the driver's name out of the key."""
    options = info["store"]["graphOptions"]
    found: str | None = options.get("overlay.imagestore") or options.get("imagestore")
    return found


def debian_tar(release: str, include: str = "") -> Path:
    """Return a tar of a real minimal Debian, made by debootstrap once and kept in CACHE.

    Raises AssertionError with debootstrap's log when it fails.
    """
    name = f"{release}-{hashlib.sha256(include.encode()).hexdigest()[:8]}"
    tar = CACHE / f"{name}.tar"
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tar.exists():
            tree = Path(tempfile.mkdtemp(dir=CACHE))
            tree.chmod(0o755)
            chosen = [f"--include={include}"] if include else []
            run("debootstrap", "--variant=minbase", *chosen, release, str(tree), timeout=900).ok()
            run("chroot", str(tree), "apt-get", "clean").ok()
            temp = CACHE / f"{name}.tar.new"
            left_out = [f"--exclude=./{path}/*" for path in ("dev", "proc", "sys", "var/lib/apt/lists")]
            run("tar", "-C", str(tree), "--numeric-owner", *left_out, "-cf", str(temp), ".").ok()
            temp.chmod(0o644)
            temp.rename(tar)
            run("rm", "-rf", "--one-file-system", str(tree)).ok()
    return tar


BUSYBOX = r"""
FROM scratch
COPY bin/busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; mkdir -p /etc /tmp /root /work; chmod 1777 /tmp"]
RUN printf 'root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/work:/bin/sh\n' > /etc/passwd && \
    printf 'root:x:0:\nwww:x:33:\n' > /etc/group && echo 33 > /work/mine && chown -R 33:33 /work
ENV GREETING=hello WHERE=image
WORKDIR /work
LABEL made.by=squashmount
CMD ["/bin/sh", "-c", "echo $GREETING from $PWD"]
"""


def build_busybox(node: Node, name: str) -> None:
    """Build a small image from the machine's static busybox: no network needed."""
    context = node.base / "busybox"
    (context / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox") or "/bin/busybox"
    shutil.copy(busybox, context / "bin/busybox")
    (context / "Containerfile").write_text(BUSYBOX)
    run("chown", "-R", f"{node.user.uid}:{node.user.gid}", str(context)).ok()
    node.podman("build", "--isolation=chroot", "--network=host", "-t", name, str(context)).ok()


DEBIAN = r"""
FROM scratch
ADD debian.tar /
COPY odd_tree.py /odd_tree.py
RUN python3 /odd_tree.py /odd && rm /odd_tree.py
RUN cd /odd && rm -r gone again deleted becomes-dir becomes-file && mkdir again becomes-dir && \
    echo new > again/new && echo in > becomes-dir/in && echo file > becomes-file
RUN rm -r /usr/share/doc && mkdir /usr/share/doc && echo one > /usr/share/doc/one && \
    rm /etc/motd && ln -sf /proc/mounts /etc/mtab
ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8
ENTRYPOINT ["/usr/bin/env"]
CMD ["python3", "-c", "print('debian')"]
"""


def build_debian(node: Node, name: str) -> None:
    """Build a real Debian with Python in several layers: deletions, an opaque directory, and everything odd."""
    context = node.base / "debian"
    context.mkdir()
    tar = debian_tar("bookworm", "python3")
    shutil.copy(tar, context / "debian.tar")
    shutil.copy(TOP / "tests/odd_tree.py", context)
    (context / "Containerfile").write_text(DEBIAN)
    options = ("--layers", "--isolation=chroot", "--network=host")
    node.podman("build", *options, "-t", name, str(context), timeout=600).ok()
    run("rm", "-rf", str(context)).ok()
