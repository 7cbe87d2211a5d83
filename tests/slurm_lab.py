"""A real Slurm of two nodes and a controller, each a machine of its own by namespaces, inside scripts/lab.

A machine (tests/slurm_node) has its own network, host name, processes, cgroups, /tmp, /dev/shm, /run/user and one local
directory; all else is the shared file system. Podman's state is one per job step and node, as a site would have it.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from lab import TOP, Done, User, all_processes, run, wait_for

NODES = {"ctl": "10.77.0.1", "n1": "10.77.0.11", "n2": "10.77.0.12"}
_SECONDS = 60
# files that Slurm opens by these names
_PLUGINS = ("slurm-wlm/mpi_pmi2.so", "pmix2/lib/libpmix.so")

NEEDS_SLURM = pytest.mark.skipif(
    not all(shutil.which(program) for program in ("slurmctld", "slurmd", "srun", "munged", "ip"))
    or not all(Path("/usr/lib/x86_64-linux-gnu", name).exists() for name in _PLUGINS),
    reason="needs slurmctld, slurmd, slurm-client, slurm-wlm-basic-plugins, munge, libpmix-dev, iproute2",
)

_SLURM_CONF = """
ClusterName=lab
SlurmctldHost=ctl(10.77.0.1)
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={top}/state
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd-%n.pid
SlurmdSpoolDir={top}/spool-%n
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd-%n.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=2
Prolog={top}/prolog
Epilog={top}/epilog
TaskProlog={top}/task-prolog
PrologFlags=Alloc
NodeName=n1 NodeAddr=10.77.0.11 CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeAddr=10.77.0.12 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=lab Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""

_CGROUP_CONF = """
CgroupPlugin=cgroup/v2
IgnoreSystemd=yes
"""

_ONE_HIERARCHY = r"""
// Slurm refuses a kernel that knows cgroup v1 besides ("Hybrid mode is not supported"); its machine here has v2 only
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static int (*real)(const char *, int, ...);
int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    if (!real)
        real = dlsym(RTLD_NEXT, "open");
    int fd = real(path, flags, mode);
    size_t length = strlen(path);
    if (fd < 0 || strncmp(path, "/proc/", 6) || length < 7 || strcmp(path + length - 7, "/cgroup"))
        return fd;
    char text[4096] = "", *line;
    int only = memfd_create("cgroup", 0);
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got > 0 && (line = strstr(text, "0::")) && write(only, line, strlen(line)) > 0)
        lseek(only, 0, SEEK_SET);
    return only;
}
int open64(const char *, int, ...) __attribute__((alias("open")));
"""

_PROLOG = """#!/bin/sh
# root, on every node of a job: where the job's Podman state goes
install -d -m 700 -o "$SLURM_JOB_UID" -g "$SLURM_JOB_UID" \
  "/run/user/$SLURM_JOB_UID" "/run/user/$SLURM_JOB_UID/$SLURM_JOB_ID" "{local}/$SLURM_JOB_ID"
"""

_TASK_PROLOG = """#!/bin/sh
# user, before every task: a Podman of its own for every step, since Slurm ends the pause process with the step
run=/run/user/$(id -u)/$SLURM_JOB_ID/$SLURM_STEP_ID local={local}/$SLURM_JOB_ID/$SLURM_STEP_ID
mkdir -p -m 700 "$run" "$local"
cat >"$run/storage.conf.$$" <<END
[storage]
driver = "overlay"
runroot = "$run/containers"
graphroot = "$local/graph"
rootless_storage_path = "$local/graph"
[storage.options]
additionalimagestores = ["{store}"]
[storage.options.overlay]
mount_program = "{program}"
END
mv "$run/storage.conf.$$" "$run/storage.conf"
echo "export XDG_RUNTIME_DIR=$run"
echo "export CONTAINERS_STORAGE_CONF=$run/storage.conf"
echo "export CONTAINERS_CONF={top}/containers.conf"
"""

_CONTAINERS_CONF = """
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
hooks_dir = ["{top}/hooks.d"]
[containers]
log_driver = "none"
"""

_POLICY = """
# trixie's MPICH is newer than the host's
mpi_mismatch = "warn"
"""

_EPILOG = """#!/bin/sh
# root, on every node when the job has ended
for pid in $(cat "/run/user/$SLURM_JOB_UID/$SLURM_JOB_ID"/*/libpod/tmp/pause.pid 2>/dev/null); do
  [ "$(stat -c %u "/proc/$pid")" != "$SLURM_JOB_UID" ] || kill -9 "$pid"
done
rm -rf --one-file-system "/run/user/$SLURM_JOB_UID/$SLURM_JOB_ID" "{local}/$SLURM_JOB_ID"
"""


class Cluster:
    """The cluster; `start` it, `close` it. Jobs see `store` as an additional image store."""

    def __init__(self, lab: Path, product: Path, store: Path) -> None:
        self.top, self.local = lab / "slurm", lab / "slurm/local"
        self._product, self._store = product, store
        self._machines: dict[str, subprocess.Popen[bytes]] = {}
        self._init: dict[str, int] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._hosts = Path("/etc/hosts").read_text()

    def start(self) -> None:
        """Start everything; returns when both nodes are idle."""
        self._write_files()
        for name in NODES:
            self._start_machine(name)
        self._connect()
        for name in NODES:
            key = ("--key-file", f"{self.top}/munge/key", "--seed-file", f"/run/munge/{name}.seed")
            munged = ("munged", "--foreground", *key, "--log-file", f"/run/munge/{name}.log")
            self._daemon(name, "setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", *munged)
        for name in NODES:
            wait_for(lambda name=name: self.on(name, "munge", "-n").code == 0, f"munged of {name} answers")
        self._daemon("ctl", "slurmctld", "-D")
        for name in ("n1", "n2"):
            self._daemon(name, "env", f"LD_PRELOAD={self.top}/one_hierarchy.so", "slurmd", "-D", "-N", name)
        idle = ("sinfo", "--noheader", "--states=idle", "--format=%D")
        try:
            wait_for(lambda: self.on("ctl", *idle).out.strip() == "2", "two idle nodes")
        except AssertionError as err:
            raise AssertionError(f"{err}\n{self.logs()}") from None

    def program(self, name: str) -> str:
        """Return the path of one of our programs, on every machine."""
        return str(self._product / "bin" / name)

    def _write_files(self) -> None:
        self.top.mkdir(mode=0o755)
        for name in ("state", "spool-n1", "spool-n2", "local", *(f"local.{node}" for node in NODES)):
            (self.top / name).mkdir(mode=0o755)
        names = {
            "top": self.top,
            "local": self.local,
            "store": self._store,
            "program": self.program("squashmount-mount"),
        }
        (self.top / "containers.conf").write_text(_CONTAINERS_CONF.format(**names))
        (self.top / "hooks.toml").write_text(_POLICY)
        hook = ("--dir", f"{self.top}/hooks.d", "--policy", f"{self.top}/hooks.toml")
        run(self.program("squashmount-hooks"), "install", *hook).ok()
        for name, text in (("prolog", _PROLOG), ("task-prolog", _TASK_PROLOG), ("epilog", _EPILOG)):
            (self.top / name).write_text(text.format(**names))
            (self.top / name).chmod(0o755)
        (self.top / "one_hierarchy.c").write_text(_ONE_HIERARCHY)
        shim = ("-shared", "-fPIC", "-o", f"{self.top}/one_hierarchy.so", f"{self.top}/one_hierarchy.c")
        run("gcc", *shim).ok()
        Path("/etc/slurm").mkdir(exist_ok=True)
        Path("/etc/slurm/slurm.conf").write_text(_SLURM_CONF.format(top=self.top))
        Path("/etc/slurm/cgroup.conf").write_text(_CGROUP_CONF)
        Path("/etc/hosts").write_text(self._hosts + "".join(f"{address} {name}\n" for name, address in NODES.items()))
        (self.top / "munge").mkdir(mode=0o700)
        (self.top / "munge/key").write_bytes(os.urandom(128))
        (self.top / "munge/key").chmod(0o600)
        run("chown", "-R", "munge:munge", f"{self.top}/munge").ok()

    def _start_machine(self, name: str) -> None:
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child")
        with (self.top / f"{name}.out").open("wb") as out:
            machine = subprocess.Popen(
                ("unshare", *spaces, str(TOP / "tests/slurm_node"), name, str(self.local)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._machines[name] = machine
        children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children")
        wait_for(lambda: children.read_text().split(), f"{name} has its process 1")
        self._init[name] = int(children.read_text().split()[0])
        comm = Path(f"/proc/{self._init[name]}/comm")
        wait_for(lambda: comm.read_text() == "catatonit\n", f"{name} is up")

    def _connect(self) -> None:
        """Put all machines on one Ethernet without a way out: a bridge in the controller."""
        self.on("ctl", "ip", "link", "add", "br0", "type", "bridge").ok()
        self.on("ctl", "ip", "addr", "add", f"{NODES['ctl']}/24", "dev", "br0").ok()
        self.on("ctl", "ip", "link", "set", "br0", "up").ok()
        for name in ("n1", "n2"):
            # the other end is put into a network by a process id of this namespace: nsenter's network only
            link = ("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns")
            run("nsenter", "-t", str(self._init["ctl"]), "--net", *link, str(self._init[name])).ok()
            self.on("ctl", "ip", "link", "set", f"to-{name}", "master", "br0", "up").ok()
            self.on(name, "ip", "addr", "add", f"{NODES[name]}/24", "dev", "eth0").ok()
            self.on(name, "ip", "link", "set", "eth0", "up").ok()

    def _enter(self, name: str, cgroup: str) -> tuple[str, ...]:
        move = f'echo $$ > /sys/fs/cgroup/slurm-{name}/{cgroup}/cgroup.procs; exec nsenter -t {self._init[name]} "$@"'
        return ("bash", "-c", move, "enter", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

    def _daemon(self, name: str, *argv: str) -> None:
        with (self.top / f"{name}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(
                    (*self._enter(name, "system"), *argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/"
                )
            )

    def on(self, name: str, *argv: str, user: User | None = None, timeout: float = _SECONDS, **env: str) -> Done:
        """Run a command on a machine, as root or a user, in a login's environment and `env`."""
        full = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", **env}
        become: tuple[str, ...] = ()
        if user is not None:
            full |= {"HOME": str(user.home), "USER": user.name}
            become = ("setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--reset-env")
        words = [f"{key}={value}" for key, value in full.items()]
        command = (*self._enter(name, "login"), f"--wd={user.home if user else '/'}", "--", *become)
        return run(*command, "env", "-i", *words, *argv, timeout=timeout)

    def srun(self, user: User, *argv: str, timeout: float = _SECONDS, **env: str) -> Done:
        """Run srun on the controller, where nothing of a node is to be had."""
        return self.on("ctl", "srun", *argv, user=user, timeout=timeout, **env)

    def processes(self, name: str) -> list[str]:
        """Return the command lines of what jobs run on a machine, by the cgroups of their steps."""
        found = []
        for pid in all_processes():
            with suppress(OSError):
                cgroups = Path(f"/proc/{pid}/cgroup").read_text()
                if f"0::/slurm-{name}/system.slice/" in cgroups and "/job_" in cgroups:
                    found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
        return found

    def left(self, name: str, user: User) -> list[str]:
        """Return what jobs of a user have left on a machine: processes, mounts, files."""
        mounts = Path(f"/proc/{self._init[name]}/mountinfo").read_text().splitlines()
        places = (f"{self.local}/", f"/run/user/{user.uid}/")
        there = [line for line in mounts if line.split()[4].startswith(places)]
        runtime = Path(f"/proc/{self._init[name]}/root/run/user/{user.uid}")
        files = [*(self.top / f"local.{name}").iterdir(), *(runtime.iterdir() if runtime.exists() else ())]
        return [*self.processes(name), *there, *map(str, files)]

    def logs(self) -> str:
        """Return what the daemons said, for a failed test."""
        files = (*sorted(self.top.glob("*.log")), *sorted(self.top.glob("*.out")))
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def close(self) -> None:
        """End all machines: process 1 of each takes everything with it."""
        for machine in self._machines.values():
            machine.kill()
        for process in (*self._daemons, *self._machines.values()):
            process.wait(20)
        Path("/etc/hosts").write_text(self._hosts)  # other tests have an n1 and n2 of their own
