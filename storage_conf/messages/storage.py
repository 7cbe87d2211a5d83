"""Messages about storage.conf, graphroot, runroot, additional stores and images."""

from .message import Message

_REPAIR = "the owner of the store: migrate2scratch repair DIR; a store of another program: make it again"

MESSAGES: tuple[Message, ...] = (
    Message(
        'database graph driver "{old}" does not match our graph driver "{new}"',
        'Error: database graph driver "vfs" does not match our graph driver "overlay": database configuration mismatch',
        "A graphroot remembers the driver it was first used with, an aborted first use counts too.",
        "save what you need, then podman system reset; or another graphroot",
        ("U40",),
        also=('database storage graph driver "{old}" does not match our storage graph driver "{new}"',),
    ),
    Message(
        'User-selected graph driver "{new}" overwritten by graph driver "{old}" from database',
        'User-selected graph driver "overlay" overwritten by graph driver "vfs" from database - delete libpod local files to '
        "resolve.  May prevent use of images created by other tools",
        "A graphroot remembers the driver it was first used with; storage.conf is overridden. With vfs no squash is seen.",
        "save what you need, then podman system reset; or another graphroot",
        ("U40",),
    ),
    Message(
        "database configuration mismatch",
        'Error: database static dir "/home/dave/.local/share/containers/storage/libpod" does not match our static dir '
        '"/tmp/c/libpod": database configuration mismatch',
        "The graphroot was first used with other places (runroot, static directory), for example by another path.",
        "use the places of before, another graphroot, or podman system reset",
        ("U53",),
    ),
    Message(
        "can't stat imageStore dir {store}: stat {path}",
        "Error: overlay: can't stat imageStore dir /scratch/images: stat /scratch/images: no such file or directory",
        "A directory of additionalimagestores does not exist on this node. Podman then refuses every command.",
        "mount the file system; migrate2scratch init {store}; or take it out of additionalimagestores",
        also=("can't stat imageStore dir {store}",),
    ),
    Message(
        "read-only image store assigns the same name to multiple images",
        "Error: read-only image store assigns the same name to multiple images",
        "Two images of one additional store have the same name: it was written by two programs at once. Podman refuses the "
        "whole store.",
        _REPAIR,
        also=("read-only layer store assigns the same name to multiple layers",),
    ),
    Message(
        "overlay-images/images.lock: no such file or directory",
        "Error: open /scratch/images/overlay-images/images.lock: no such file or directory",
        "An additional store without its lock files: Podman makes none there and refuses the store.",
        _REPAIR,
        also=("overlay-layers/layers.lock: no such file or directory",),
    ),
    Message(
        "overlay-images/images.lock: permission denied",
        "Error: open /scratch/images/overlay-images/images.lock: permission denied",
        "You may not read the lists of an additional store.",
        "the owner of the store: chmod -R a+rX on overlay-images and overlay-layers",
        also=("overlay-layers/layers.lock: permission denied", "overlay-images/images.json: permission denied"),
    ),
    Message(
        'overlay-images/images.json": {reason}',
        'Error: loading "/scratch/images/overlay-images/images.json": unexpected end of JSON input',
        "The list of images of a store is torn: a writer was interrupted or two wrote at once.",
        _REPAIR,
        also=('overlay-layers/layers.json": {reason}',),
    ),
    Message(
        "unexpected end of JSON input",
        "Error: unexpected end of JSON input",
        "A JSON file of a store (images.json, layers.json) or of Podman's own state is cut short: a full disk, a kill.",
        f"df and quota; {_REPAIR}",
        ("U41",),
    ),
    Message(
        "overlay: can't stat program",
        'Error: overlay: can\'t stat program "/opt/squashmount/bin/squashmount-mount": no such file or directory',
        "The mount_program of storage.conf does not exist on this node.",
        "install it at the same absolute path on every node, or: squashmount-conf generate --write DIR",
        ("U81",),
        also=("overlay: can't stat program {program}",),
    ),
    Message(
        "using mount program {program}: {reason}",
        "Error: using mount program /usr/bin/fuse-overlayfs: unknown argument ignored: lazytime: exit status 1",
        "The mount program ended with an error; its own words stand behind its name, or <stderr empty>.",
        "explain what stands behind the name; for ours the log has more: podman unshare squashmount ps",
        ("U81",),
    ),
    Message(
        "incompatible types: TOML value has type {given}; destination has type {wanted}",
        'Error: toml: line 5 (last key "storage.options.overlay.ignore_chown_errors"): incompatible types: TOML value has '
        "type bool; destination has type string",
        "A value of storage.conf or containers.conf has the wrong type, and Podman refuses the whole file. "
        'ignore_chown_errors is a string: "true".',
        "squashmount-conf check FILE names the line",
        ("U81",),
    ),
    Message(
        "' is not supported over {fstype}, a mount_program is required",
        "Error: 'overlay' is not supported over overlayfs, a mount_program is required: backing file system is unsupported "
        "for this graph driver",
        "The graphroot lies on a file system that kernel overlay cannot write to.",
        "a graphroot on a local disk or tmpfs; mount_program in [storage.options.overlay]",
        ("U40", "U43"),
    ),
    Message(
        "' is not supported over {fstype} at {path}",
        "Error: kernel does not support overlay fs: 'overlay' is not supported over nfs at \"/home/dave/.local/share/"
        'containers/storage/overlay": backing file system is unsupported for this graph driver',
        "The graphroot lies on a network file system or another one that overlay cannot write to.",
        "graphroot on a local disk or tmpfs; only the store of squashes belongs on the shared file system",
        ("U40",),
    ),
    Message(
        "unable to create kernel-style whiteout: operation not permitted",
        "Error: kernel does not support overlay fs: unable to create kernel-style whiteout: operation not permitted",
        "Kernel overlay in a user namespace needs Linux 5.11, or a mount_program.",
        "mount_program in [storage.options.overlay]: squashmount-conf generate --write DIR",
        ("U43", "U80"),
    ),
    Message(
        "RunRoot is pointing to a path ({path}) which is not writable",
        "RunRoot is pointing to a path (/run/user/1001/containers) which is not writable. Most likely podman will fail.",
        "XDG_RUNTIME_DIR or runroot is a directory of somebody else, or of a session that has ended.",
        "a directory of your own on this node: export XDG_RUNTIME_DIR=/run/user/$(id -u)",
        ("U50", "U53"),
    ),
    Message(
        "XDG_RUNTIME_DIR directory {path} is not owned by the current user",
        'XDG_RUNTIME_DIR directory "/run/user/0" is not owned by the current user',
        "XDG_RUNTIME_DIR comes from another user: su without -, sudo, or a job that was sent with it.",
        "export XDG_RUNTIME_DIR=/run/user/$(id -u); where nobody makes that, the prolog of the job must (mode 0700)",
        ("U50",),
    ),
    Message(
        "lstat /run/user/{uid}: no such file or directory",
        "Failed to obtain podman configuration: lstat /run/user/1001: no such file or directory",
        "There is no login session on this node that would have made the directory: ssh without PAM, a job, cron.",
        "as root, or in the prolog: install -d -m 700 -o {uid} /run/user/{uid}; or loginctl enable-linger",
        ("U50", "U52"),
        also=("stat /run/user/{uid}: no such file or directory",),
    ),
    Message(
        "Failed to decode the keys [{keys}] from",
        'time="2026-11-22T22:14:57Z" level=warning msg="Failed to decode the keys [\\"storage.options.foo\\"] from '
        '\\"/etc/containers/storage.conf\\""',
        "Podman does not know these keys and ignores them: a misspelling, a wrong table, or those of another version.",
        "squashmount-conf check FILE names the line, and what was probably meant",
    ),
    Message(
        "is not valid TOML.",
        "squashmount: /etc/squashmount/site.toml is not valid TOML.",
        "A configuration file of squashmount has a mistake; nothing is done with half of it.",
        "squashmount-conf check FILE names the line",
    ),
    Message(
        "the specified runroot is longer than 50 characters",
        "Error: the specified runroot is longer than 50 characters",
        "Sockets lie below runroot, and their paths are limited to 107 characters.",
        'runroot = "/tmp/containers-$UID/run", or another short path on this node',
        ("U53",),
        also=("the specified runroot is longer than {limit} characters",),
    ),
    Message(
        "mkdir {path}/containers-user-{uid}: file exists",
        "Error: mkdir /tmp/containers-user-1001: file exists",
        "Another user, or an older job, left a directory of that name in /tmp.",
        "set XDG_RUNTIME_DIR, so that Podman takes no name in /tmp",
        ("U50",),
    ),
    Message(
        "mkdir /var/lib/containers/storage: permission denied",
        "Error: mkdir /var/lib/containers/storage: permission denied",
        "Root's graphroot is used for you: since Podman 6 a graphroot of /etc/containers/storage.conf holds for rootless "
        "users too.",
        "the site: squashmount-conf generate --site --podman 6 writes storage.rootless.conf.d; you: graphroot in a "
        "storage.conf of your own",
        ("U40",),
        also=(
            "mkdir /var/lib/containers: permission denied",
            "open /var/lib/containers/storage/{file}: permission denied",
        ),
    ),
    Message(
        "mkdir {path}: permission denied",
        "Error: mkdir /local/1001: permission denied",
        "Podman may not make its graphroot or runroot there; a variable that is not set shortens the path, and UID in braces "
        "is such a variable.",
        "squashmount-conf check; graphroot with $UID, in a directory that everybody may write (mode 1777)",
        ("U40",),
    ),
    Message(
        "containers/storage.conf: permission denied",
        "stat /root/.config/containers/storage.conf: permission denied",
        "HOME (or XDG_CONFIG_HOME, CONTAINERS_STORAGE_CONF) leads to somebody else's directory: su without -, a job's environment.",
        "export HOME=$(getent passwd $(id -u) | cut -d: -f6)",
        ("U82",),
        also=("containers/containers.conf: permission denied",),
    ),
    Message(
        "locating item named {item} for image with ID {image} (consider removing the image to resolve the issue)",
        'Error: locating item named "manifest" for image with ID "21f4..." (consider removing the image to resolve the '
        "issue): file does not exist",
        "The record of an image is there and its files are not: a half copied or half removed image shadows a good one.",
        "podman rmi it; in a store: migrate2scratch verify, then repair",
    ),
    Message(
        "mounting read/only store images is not allowed",
        "Error: mounting read/only store images is not allowed",
        "Podman 5 and later mount no image of an additional store.",
        "squashmount mount DIR/overlay/l/LINK.squash DIRECTORY, or podman run",
    ),
    Message(
        "reading blob {digest}: {reason}/diff/{path}: no such file or directory",
        "Error: reading blob sha256:0a6e...: open /scratch/images/overlay/3b1f/diff/usr/bin/env: no such file or directory",
        "podman save and push read every file of every layer, and of a squashed image only the squash is there.",
        "push or save it where it was pulled, or pull it again",
    ),
    Message(
        "layer not known",
        "Error: layer not known",
        "The list of images names a layer that no store has: a store that was written while it was read, or half removed.",
        _REPAIR,
    ),
    Message(
        "image not known",
        "Error: localhost/solver: image not known",
        "No store that Podman knows has this image: the name is another, or the store is not in additionalimagestores.",
        "podman images; migrate2scratch images DIR; squashmount-conf check",
        ("U81",),
    ),
    Message(
        "did not resolve to an alias and no unqualified-search registries are defined",
        'Error: short-name "python:3" did not resolve to an alias and no unqualified-search registries are defined in '
        '"/etc/containers/registries.conf"',
        "The name has no registry, and none is configured to look in. An image that only a store has is missing, too.",
        "write the whole name (docker.io/library/python:3); podman images shows those of the stores",
    ),
    Message(
        "toomanyrequests: {reason}",
        "Error: reading manifest 3 in docker.io/library/python: toomanyrequests: You have reached your pull rate limit.",
        "The registry counts pulls of the whole site's address.",
        "podman login; pull once, on a login node, and squash: migrate2scratch mig IMAGE DIR",
    ),
    Message(
        "the container name {name} is already in use by {container}.",
        'Error: creating container storage: the container name "solver" is already in use by 4b1c. You have to remove that '
        "container to be able to reuse that name: that name is already in use",
        "A container of an earlier job, or of another task of this one, has the name.",
        "podman rm {name}; names with $SLURM_JOB_ID and $SLURM_PROCID; podman run --replace",
    ),
    Message(
        "no space left on device",
        "Error: writing blob: storing blob to file: write /var/tmp/storage12/1: no space left on device",
        "A file system is full, or has no inodes left: the graphroot, or /var/tmp, where pulled layers lie first.",
        "df -h and df -i of graphroot and /var/tmp; export TMPDIR=a directory with room; podman system prune",
        ("U41",),
        also=("No space left on device",),
    ),
    Message(
        "disk quota exceeded",
        "Error: writing blob: storing blob to file: write /var/tmp/storage12/1: disk quota exceeded",
        "Your quota of bytes or files is used up; unpacked images have very many files.",
        "quota -s; a node-local graphroot; squashed images are one file",
        ("U41",),
        also=("Disk quota exceeded",),
    ),
    Message(
        "stale file handle",
        "Error: open /scratch/images/overlay-images/images.json: stale file handle",
        "The NFS server has forgotten a file: it was replaced or removed on another node, or the server was restarted.",
        "again; if it stays: mount the file system again",
        also=("Stale file handle",),
    ),
    Message(
        "Transport endpoint is not connected",
        "ls: cannot access '/tmp/c/overlay/4b1c/merged': Transport endpoint is not connected",
        "The FUSE server behind a mount is gone: killed by a job's end or for its memory.",
        "start the container again; an empty mount that stays: podman unshare umount -l PATH",
        ("U70",),
        also=("transport endpoint is not connected",),
    ),
    Message(
        "device or resource busy",
        'Error: replacing mount point "/tmp/c/overlay/4b1c/merged": device or resource busy',
        "A mount of an earlier container is left in another mount namespace: of a pause process, a server, a shell.",
        "podman system migrate; podman unshare squashmount ps; then again",
        ("U51",),
    ),
    Message(
        "allocation failed; exceeded num_locks ({count})",
        "Error: allocating lock for new container: allocation failed; exceeded num_locks (2048)",
        "Every container and volume holds a lock until it is removed.",
        "podman container prune; podman run --rm; num_locks in [engine] of containers.conf, then podman system renumber",
    ),
    Message(
        "lchown {path}: operation not permitted",
        "Error: copying system image: lchown /etc/shadow: operation not permitted",
        "The file system refuses owners: an NFS server with root_squash, a Lustre nodemap.",
        'a node-local graphroot; without one: ignore_chown_errors = "true"',
        ("U44", "U40"),
        also=("chown {path}: operation not permitted",),
    ),
    Message(
        "lsetxattr {path}: operation not supported",
        "Error: copying system image: lsetxattr /usr/bin/ping: operation not supported",
        "The file system of the graphroot stores no extended attributes: NFS before 4.2, some Lustre mounts.",
        "a node-local graphroot",
        ("U45",),
    ),
)
