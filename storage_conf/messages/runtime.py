"""Messages of crun, runc, conmon, fuse-overlayfs and fusermount3, about cgroups, networks and sessions."""

from .message import Message

MESSAGES: tuple[Message, ...] = (
    Message(
        "cgroups in hybrid mode not supported, drop all controllers from cgroupv2",
        "Error: OCI runtime error: crun: cgroups in hybrid mode not supported, drop all controllers from cgroupv2",
        "The node mounts cgroup v1 and v2, and controllers are on in both.",
        "the site: boot with systemd.unified_cgroup_hierarchy=1; a user: podman --cgroup-manager cgroupfs run "
        "--cgroups=disabled",
        ("U60",),
    ),
    Message(
        "the requested cgroup controller `{controller}` is not available",
        "Error: OCI runtime error: crun: the requested cgroup controller `pids` is not available",
        "The controller is not delegated to your cgroup.",
        "leave the limit out (--pids-limit=0); the site: Delegate=yes for user@.service, or cgroup.subtree_control",
        ("U61",),
    ),
    Message(
        "creating cgroup directory `{path}`: Permission denied",
        "Error: OCI runtime error: crun: creating cgroup directory `/sys/fs/cgroup/libpod_parent`: Permission denied",
        "Your process is in a cgroup that you may not make others in: a job's, a service's.",
        'in containers.conf: [containers] cgroups = "disabled", or the scheduler delegates the cgroup of the job',
        ("U61",),
    ),
    Message(
        "sd-bus call: {reason}",
        "Error: OCI runtime error: crun: sd-bus call: Interactive authentication required.: Permission denied",
        "cgroup_manager is systemd, and systemd does not let you make a scope: no user session here.",
        'cgroup_manager = "cgroupfs" in [engine] of containers.conf',
        ("U61", "U52"),
    ),
    Message(
        "The cgroupv2 manager is set to systemd but there is no systemd user session available",
        "The cgroupv2 manager is set to systemd but there is no systemd user session available",
        "There is no user session of systemd, as in a batch job. Podman falls back to cgroupfs.",
        'cgroup_manager = "cgroupfs" in [engine] of containers.conf, or loginctl enable-linger',
        ("U52", "U61"),
    ),
    Message(
        "Using cgroups-v1 which is deprecated",
        "Using cgroups-v1 which is deprecated in favor of cgroups-v2 with Podman v5 and will be removed in a future version. "
        "Set environment variable `PODMAN_IGNORE_CGROUPSV1_WARNING` to hide this warning.",
        "The node mounts cgroup v1, which Podman 6 does not know any more.",
        "the site: boot with systemd.unified_cgroup_hierarchy=1",
        ("U60",),
    ),
    Message(
        "Failed to add conmon to cgroupfs sandbox cgroup",
        "Failed to add conmon to cgroupfs sandbox cgroup: creating cgroup path /libpod_parent/conmon: mkdir "
        "/sys/fs/cgroup/libpod_parent: permission denied",
        "You may not make cgroups where Podman runs. The container runs all the same, in the job's cgroup.",
        'nothing, or cgroups = "no-conmon" in [containers] of containers.conf',
        ("U61",),
    ),
    Message(
        "setrlimit `{limit}`: Operation not permitted",
        "Error: OCI runtime error: crun: setrlimit `RLIMIT_NPROC`: Operation not permitted",
        "The container wants a higher limit than your session's hard limit.",
        "default_ulimits in containers.conf, --ulimit host; the site: limits.d, Slurm's PropagateResourceLimits",
    ),
    Message(
        "mount `proc` to `{path}`: Operation not permitted",
        "Error: OCI runtime error: crun: mount `proc` to `proc`: Operation not permitted",
        "Something is mounted over parts of /proc here (Podman in a container), and the kernel shows no second one.",
        "--pid=host, or start the outer container with unmask=/proc",
        ("U42",),
    ),
    Message(
        "create keyring `{name}`: Disk quota exceeded",
        "Error: OCI runtime error: crun: create keyring `4b1c`: Disk quota exceeded",
        "Each container makes a key ring, and your quota of keys is used up.",
        "keyring = false in [containers] of containers.conf",
        also=("unable to create session key: disk quota exceeded",),
    ),
    Message(
        "error executing hook `{hook}` (exit code: {code})",
        "Error: OCI runtime error: crun: error executing hook `/usr/bin/hook` (exit code: 1)",
        "An OCI hook of the site ended with an error; crun keeps its words.",
        "squashmount-hooks list; squashmount-hooks log CONTAINER, where it is ours",
    ),
    Message(
        "executable file `{program}` not found in $PATH",
        "Error: crun: executable file `solver` not found in $PATH: No such file or directory: OCI runtime attempted to invoke "
        "a command that was not found",
        "The image has no such program in its PATH; or its root file system is empty, because the mount program does not "
        "find the squash.",
        "podman run --rm IMAGE ls /; if that fails too: squashmount-conf check",
        ("U81",),
        also=("executable file `{program}` not found: ", 'exec: "{program}": executable file not found in $PATH'),
    ),
    Message(
        "exec format error",
        "exec /usr/bin/python3: exec format error",
        "The image is for another processor, or a script has no #! line.",
        "uname -m; podman image inspect --format '{{.Architecture}}' IMAGE; podman pull --platform",
        also=("Exec format error",),
    ),
    Message(
        "could not find slirp4netns, the network namespace can't be configured",
        'Error: could not find slirp4netns, the network namespace can\'t be configured: exec: "slirp4netns": executable file '
        "not found in $PATH",
        "The program that connects a rootless network namespace is not installed.",
        "--network=host, which jobs want; or as root: apt-get install slirp4netns",
        ("U80",),
    ),
    Message(
        "could not find pasta, the network namespace can't be configured",
        'Error: could not find pasta, the network namespace can\'t be configured: exec: "pasta": executable file not found in '
        "$PATH",
        "The program that connects a rootless network namespace of Podman 5 is not installed.",
        "--network=host, which jobs want; or as root: apt-get install passt",
        ("U80",),
        also=("setting up Pasta: could not find pasta",),
    ),
    Message(
        "could not find {helper} in one of",
        'Error: could not find "netavark" in one of [/usr/local/libexec/podman /usr/libexec/podman]. To resolve this error, '
        "set the helper_binaries_dir key in the `[engine]` section of containers.conf to the directory containing your helper "
        "binaries.",
        "A helper program of Podman is not installed.",
        "install the package of that name; or helper_binaries_dir in [engine] of containers.conf",
        ("U80",),
    ),
    Message(
        "could not find a working conmon binary",
        "Error: could not find a working conmon binary (configured options: [/usr/bin/conmon]: invalid argument)",
        "conmon, which holds a container's output, is not installed or too old.",
        "as root: apt-get install conmon; or conmon_path in [engine] of containers.conf",
        ("U80",),
    ),
    Message(
        'default OCI runtime "{runtime}" not found',
        'Error: default OCI runtime "crun" not found: invalid argument',
        "containers.conf names a runtime that is not installed.",
        "install {runtime}, or runtime in [engine] of containers.conf",
        ("U80",),
        also=("default OCI runtime {runtime} not found",),
    ),
    Message(
        "unknown FS magic on {path}",
        'Error: unknown FS magic on "/run/user/1001": 1021994',
        "runc or Podman met a file system it does not know where it expects cgroups or sockets.",
        "squashmount-conf doctor --only U50,U60",
        ("U60", "U50"),
    ),
    Message(
        "fuse: device not found, try 'modprobe fuse' first",
        "fuse: device not found, try 'modprobe fuse' first",
        "There is no /dev/fuse: the module is not loaded, or the container or job has no such device.",
        "as root: modprobe fuse; podman run --device /dev/fuse for Podman in a container",
        ("U70",),
        also=("fuse device not found, try 'modprobe fuse' first",),
    ),
    Message(
        "fuse: failed to open /dev/fuse: {reason}",
        "fuse: failed to open /dev/fuse: Permission denied",
        "/dev/fuse may not be opened by you: its mode, or the device cgroup of the job.",
        'as root: chmod 666 /dev/fuse (udev: KERNEL=="fuse", MODE="0666"); Slurm: cgroup.conf ConstrainDevices',
        ("U70",),
    ),
    Message(
        "fusermount3: mount failed: {reason}",
        "fusermount3: mount failed: Operation not permitted",
        "fusermount3 has no setuid bit, or lies on a nosuid mount. In a user namespace it is not needed.",
        "as root: chmod 4755 /usr/bin/fusermount3",
        ("U71",),
        also=("fusermount: mount failed: {reason}",),
    ),
    Message(
        "only allowed if 'user_allow_other' is set in /etc/fuse.conf",
        "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
        "A mount that other users shall see needs the site's permission.",
        "as root: echo user_allow_other >> /etc/fuse.conf; or leave allow_other out",
        ("U71",),
    ),
    Message(
        "fuse-overlayfs: cannot mount: {reason}",
        "fuse-overlayfs: cannot mount: Operation not permitted",
        "fuse-overlayfs may not mount here: no user namespace with mount rights, or no /dev/fuse.",
        "squashmount-conf doctor --only U42,U70",
        ("U70", "U42"),
    ),
    Message(
        "fuse-overlayfs: cannot read upper dir: {reason}",
        "fuse-overlayfs: cannot read upper dir: Permission denied",
        "The directory for what the container writes cannot be used: it lies on a file system without the rights or the "
        "extended attributes that are needed, or was made under another range.",
        "a node-local graphroot; podman system migrate",
        ("U40", "U45", "U54"),
    ),
    Message(
        "fuse-overlayfs: cannot read lower dirs: {reason}",
        "fuse-overlayfs: cannot read lower dirs: Permission denied",
        "A layer cannot be read: a store on another node's disk, or closed directories above it.",
        "ls -ld every directory above the store; the owner: chmod -R a+rX",
    ),
    Message(
        "too many levels of symbolic links",
        "Error: mounting overlay: too many levels of symbolic links",
        "Overlay on overlay beyond the kernel's depth of two, or directories that overlap.",
        "a graphroot that is no overlay: a local disk or tmpfs",
        ("U43",),
    ),
    Message(
        "oom_kill event in StepId={step}",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.",
        "The job has used all memory it asked for; a graphroot or runroot on tmpfs counts for it.",
        "srun --mem; a graphroot on a local disk",
        also=("oom-kill event(s) in StepId={step}",),
    ),
    Message(
        "OCI permission denied",
        "Error: crun: open executable: Permission denied: OCI permission denied",
        "The program may not be executed in the container: its mode, or a volume on a noexec mount.",
        "ls -l of the program in the image; findmnt -T of the volume",
        ("U40",),
    ),
    Message(
        "could not resolve module {module}: ",
        'Error: could not resolve module "mpi": 3 errors occurred: stat /home/dave/.config/containers/containers.conf.modules'
        "/mpi: no such file or directory",
        "podman --module looks in containers.conf.modules of the user, /etc and /usr/share, and there is none of this name.",
        "squashmount-hooks install; ls /etc/containers/containers.conf.modules /usr/share/containers/containers.conf.modules",
    ),
    Message(
        "unknown flag: --module",
        "Error: unknown flag: --module",
        "Podman before 4.8 has no modules of containers.conf.",
        "the options instead: podman --hooks-dir DIR run --annotation squashmount.mpi=auto ...",
        ("U80",),
    ),
)
