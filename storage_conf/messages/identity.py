"""Messages about ids, user namespaces and the programs that set their maps."""

from .message import Message

_MIGRATE = "then: podman system migrate"

MESSAGES: tuple[Message, ...] = (
    Message(
        'cannot find UID/GID for user {user}: no subuid ranges found for user "{name}"',
        'cannot find UID/GID for user dave: no subuid ranges found for user "dave" in /etc/subuid - check rootless mode '
        "in man pages.",
        "The source of subordinate ids has no range for this name. Podman says /etc/subuid also where the source is LDAP, "
        "and takes the name from $USER first.",
        "getsubids {name}; echo $USER; grep ^subid: /etc/nsswitch.conf. No range: ask the site for one (as root, where "
        f"files count: usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST {{name}}), {_MIGRATE}",
        ("U07", "U02", "U04"),
    ),
    Message(
        'no subgid ranges found for group "{name}"',
        'cannot find UID/GID for user dave: no subgid ranges found for group "dave" in /etc/subgid - check rootless mode '
        "in man pages.",
        "There is a range of uids, but none of gids. It is looked up by the name of the user, not of the group.",
        f"getsubids -g {{name}}; as root, where files count: usermod --add-subgids FIRST-LAST {{name}}; {_MIGRATE}",
        ("U07",),
    ),
    Message(
        "cannot find UID/GID for user {user}: cannot read subids",
        "cannot find UID/GID for user dave: cannot read subids",
        "/etc/subuid cannot be read by you, is refused as a whole (shadow 4.20: no newline at the end), or the plugin of "
        "nsswitch.conf failed or did not answer.",
        "as root: chmod 644 /etc/subuid /etc/subgid; a newline at the end; is sssd running?",
        ("U06", "U05", "U07"),
    ),
    Message(
        "Using rootless single mapping into the namespace",
        "Using rootless single mapping into the namespace. This might break some images. Check /etc/subuid and /etc/subgid "
        "for adding sub*ids if not using a network user",
        "Podman found no range for you, or only one of uid and gid, and goes on with your own id alone: files of other "
        "owners cannot be unpacked.",
        "squashmount-conf doctor --only U07. Squashed images run with a single id as they are",
        ("U07",),
    ),
    Message(
        "potentially insufficient UIDs or GIDs available in user namespace (requested {uid}:{gid} for {path})",
        "potentially insufficient UIDs or GIDs available in user namespace (requested 65534:65534 for /f): Check /etc/subuid "
        'and /etc/subgid if configured locally and run "podman system migrate": lchown /f: invalid argument',
        "A file belongs to an id that your user namespace does not map: the range is smaller than 65536, missing, or newer "
        "than Podman's pause process. In an additional store: it is somebody else's, and you have a single id.",
        'a range of 65536 ids, then podman system migrate; without one: ignore_chown_errors = "true" in '
        "[storage.options.overlay], and squash the image on a login node",
        ("U09", "U44", "U51"),
        also=("there might not be enough IDs available in the namespace (requested {uid}:{gid} for {path})",),
    ),
    Message(
        "driver does not support ignore_chown_errors options",
        "vfs driver does not support ignore_chown_errors options",
        "ignore_chown_errors belongs to the overlay driver; another one is used.",
        '[storage] driver = "overlay", with a graphroot that was never used with another driver',
        ("U81",),
    ),
    Message(
        "newuidmap: uid range {inside} -> {outside} not allowed",
        "newuidmap: uid range [1-65537) -> [100000-165536) not allowed",
        "Podman asked for ids that newuidmap finds you do not own: $USER names somebody else, a statically built Podman "
        "reads /etc/subuid while newuidmap asks LDAP, or the range has changed.",
        "export USER=$(id -un); squashmount-conf doctor --only U02,U15; podman system migrate",
        ("U02", "U15", "U51"),
    ),
    Message(
        "newgidmap: gid range {inside} -> {outside} not allowed",
        "newgidmap: gid range [1-65537) -> [100000-165536) not allowed",
        "Podman asked for gids that newgidmap finds you do not own: as with newuidmap, for /etc/subgid.",
        "export USER=$(id -un); getsubids -g $USER; squashmount-conf doctor --only U02,U07,U15",
        ("U02", "U07", "U15"),
    ),
    Message(
        "newuidmap: write to uid_map failed: Operation not permitted",
        "newuidmap: write to uid_map failed: Operation not permitted",
        "newuidmap has no privilege: no setuid bit or file capability (lost in an image made with tar or over NFS), a "
        "nosuid mount, no_new_privs or a seccomp filter of the launcher; or the map was written before.",
        "grep -e NoNewPrivs -e CapBnd /proc/self/status; as root: chmod 4755 /usr/bin/newuidmap /usr/bin/newgidmap "
        "(or setcap cap_setuid+ep and cap_setgid+ep, never both)",
        ("U20", "U21", "U22", "U23"),
        also=("newgidmap: write to gid_map failed: Operation not permitted",),
    ),
    Message(
        "should have setuid or have filecaps setuid",
        'cannot set up namespace using "/usr/bin/newuidmap": should have setuid or have filecaps setuid: exit status 1',
        "Podman looked at newuidmap and saw neither a setuid bit nor file capabilities.",
        "as root: chmod 4755 /usr/bin/newuidmap /usr/bin/newgidmap, or reinstall the package (Debian: uidmap, RHEL: "
        "shadow-utils)",
        ("U20",),
        also=("should have setuid or have filecaps setgid",),
    ),
    Message(
        "newuidmap: open of uid_map failed: Permission denied",
        "newuidmap: open of uid_map failed: Permission denied",
        "newuidmap has a setuid bit and file capabilities at once; or Podman runs in a container.",
        "as root: setcap -r /usr/bin/newuidmap; setcap -r /usr/bin/newgidmap",
        ("U20",),
        also=("newgidmap: open of gid_map failed: Permission denied",),
    ),
    Message(
        "newuidmap: write to uid_map failed: Invalid argument",
        "newuidmap: write to uid_map failed: Invalid argument",
        "The kernel refuses the map: two of your ranges overlap, a line is there twice, or there are more lines than fit "
        "(340, and 4096 bytes).",
        "getsubids $USER; take out what is there twice, join neighbours",
        ("U10", "U12"),
        also=("newgidmap: write to gid_map failed: Invalid argument",),
    ),
    Message(
        "Target process {pid} is owned by a different user",
        "newuidmap: Target process 4711 is owned by a different user: uid:20000 pw_uid:20000 st_uid:20000, gid:20001 "
        "pw_gid:20000 st_gid:20001",
        "Your primary group is not the one of your passwd entry: newgrp, sg, or srun --gid.",
        "run it with the group of the login (srun without --gid; exec newgrp - $(getent passwd $USER | cut -d: -f4))",
        ("U03",),
    ),
    Message(
        "newuidmap: Cannot determine your user name",
        "newuidmap: Cannot determine your user name.",
        "Your uid has no passwd entry here: the node has lost sssd or LDAP, or NSS is not configured.",
        "getent passwd $(id -u); ask the site: sssd on this node",
        ("U01",),
        also=("newgidmap: Cannot determine your user name", "user: unknown userid {uid}"),
    ),
    Message(
        "newuidmap: subuid overflow detected",
        "newuidmap: subuid overflow detected.",
        "A range ends beyond 4294967294, the last id there is.",
        "the site: give the user a range below; squashmount-conf ids check lists all that do not fit",
        ("U13", "A01"),
        also=("newgidmap: subgid overflow detected",),
    ),
    Message(
        'command required for rootless mode with multiple IDs: exec: "newuidmap": executable file not found',
        'command required for rootless mode with multiple IDs: exec: "newuidmap": executable file not found in $PATH',
        "newuidmap is not installed, or PATH does not lead to it.",
        "as root: apt-get install uidmap (dnf install shadow-utils)",
        ("U20",),
        also=(
            'exec: "newuidmap": executable file not found in $PATH',
            'exec: "newgidmap": executable file not found in $PATH',
        ),
    ),
    Message(
        "includes the user UID",
        'invalid configuration: the specified mapping 19990:100 in "/etc/subuid" includes the user UID',
        "Your own uid lies inside your range of subordinate ids.",
        "the site: another range; it must hold no real id",
        ("U11", "A03"),
        also=("includes the user GID",),
    ),
    Message(
        "cannot clone: No space left on device",
        "cannot clone: No space left on device",
        "No user namespace can be made: user.max_user_namespaces is 0, or used up.",
        "as root: sysctl user.max_user_namespaces=28633, and the same in /etc/sysctl.d",
        ("U30",),
        also=("unshare failed: No space left on device",),
    ),
    Message(
        "user namespaces are not enabled in {file}",
        "user namespaces are not enabled in /proc/sys/user/max_user_namespaces",
        "The kernel is told to allow no user namespace.",
        "as root: sysctl user.max_user_namespaces=28633, and the same in /etc/sysctl.d",
        ("U30",),
    ),
    Message(
        "cannot clone: Operation not permitted",
        "cannot clone: Operation not permitted",
        "A user namespace is refused: the process is in a chroot, a seccomp filter (Podman in a container), or "
        "kernel.unprivileged_userns_clone is 0.",
        "as root: sysctl kernel.unprivileged_userns_clone=1; enter images with pivot_root, not chroot",
        ("U24", "U31", "U23"),
    ),
    Message(
        "Error: cannot re-exec process",
        "Error: cannot re-exec process",
        "Podman could not make its user namespace and start itself in it; the line above says why.",
        "squashmount-conf doctor --only U24,U30,U31,U42,U51",
        ("U24", "U30", "U31", "U42", "U51"),
        also=("cannot re-exec process to join the existing user namespace",),
    ),
    Message(
        "cannot set user namespace",
        "cannot set user namespace: Invalid argument",
        "Podman's pause.pid names a process whose user namespace is not Podman's: the pause process was killed, and its "
        "number given to another one.",
        "squashmount-conf doctor --only U51 names the file: remove it",
        ("U51",),
    ),
    Message(
        "write failed /proc/self/uid_map: Operation not permitted",
        "unshare: write failed /proc/self/uid_map: Operation not permitted",
        "Ubuntu 23.10 and later: AppArmor lets anybody make a user namespace, and denies every capability in it.",
        "an AppArmor profile with `userns,` for the program, or as root: sysctl "
        "kernel.apparmor_restrict_unprivileged_userns=0",
        ("U31",),
    ),
    Message(
        'try resetting the pause process with "{command}": could not find any running process',
        'invalid internal status, try resetting the pause process with "podman system migrate": could not find any running '
        "process: no such process",
        "Podman's pause process is gone (the end of a job step kills it), its file is still there.",
        "podman system migrate; in jobs: an XDG_RUNTIME_DIR for each step",
        ("U51",),
    ),
    Message(
        "invalid internal status, try resetting the pause process",
        'invalid internal status, try resetting the pause process with "podman system migrate": cannot set up namespace using '
        '"/usr/bin/newuidmap": exit status 1',
        "Podman could neither join its user namespace nor make one; the lines before and the words behind say why.",
        "podman system migrate; if it stays: squashmount-conf doctor --only U20,U21,U42,U51",
        ("U42", "U51"),
    ),
    Message(
        "Error opening libsubid_{source}.so",
        "Error opening libsubid_ldap.so: libsubid_ldap.so: cannot open shared object file: No such file or directory; Using "
        "files",
        "nsswitch.conf names a source of subordinate ids whose plugin is not installed. /etc/subuid is used instead, "
        "without an error: this node gives other ids than the rest.",
        "install the plugin (sss: sssd-common or sssd-client); there is none for ldap: subid: sss",
        ("U05",),
        also=("cannot open shared object file: No such file or directory. Using files",),
    ),
    Message(
        "Error fetching ranges",
        "Error fetching ranges",
        "getsubids got no answer: the user is unknown, has no range, or the source (sssd, LDAP) is down. It does not say "
        "which.",
        "getent passwd $USER; getsubids by name, not by number; is sssd running; sssd before 2.12 knows no subids with "
        "id_provider = ldap",
        ("U07", "U01", "A15"),
    ),
    Message(
        "This id_provider doesn't support subid ranges",
        "(2026-01-01 10:00:00): [nss] [sss_dp_get_account_send] (0x0020): This id_provider doesn't support subid ranges",
        "sssd before 2.12 knows subordinate ids for id_provider = ipa alone.",
        "sssd 2.12 or newer, or write /etc/subuid and /etc/subgid: squashmount-conf ids plan",
        ("A15",),
    ),
    Message(
        "Multiple subid ranges, only first will be processed",
        "Multiple subid ranges, only first will be processed",
        "sssd gives each user one range, whatever LDAP holds.",
        "the site: one range for each user; squashmount-conf ids check lists the others",
        ("A07",),
    ),
    Message(
        "Size limit exceeded (4)",
        "Size limit exceeded (4)",
        "The LDAP server ended the search after its limit (500 entries is usual): the answer is not complete.",
        "ask in pages: ldapsearch -E pr=1000/noprompt",
        ("A18",),
    ),
    Message(
        "keep-id is only supported in rootless mode",
        "Error: keep-id is only supported in rootless mode",
        "Root's Podman has no other id to keep.",
        "leave --userns=keep-id out, or run as an ordinary user",
    ),
    Message(
        "could not find enough available IDs",
        "Error: could not find enough available IDs",
        "The container wants a user namespace of its own and your range has no ids left for it.",
        "a range of at least 65536 ids; --userns=host",
        ("U09",),
    ),
    Message(
        "could not find a user namespace mapping for the relative mapping",
        "crun: could not find a user namespace mapping for the relative mapping `0:5:10`",
        "A mount of the container names ids that its user namespace has not.",
        "podman unshare cat /proc/self/uid_map shows what there is",
        ("U09",),
    ),
    Message(
        "unable to start container process: can't get final child's PID from pipe: EOF",
        "runc create failed: unable to start container process: can't get final child's PID from pipe: EOF",
        "runc could not make the namespaces: user.max_user_namespaces (or max_mnt_namespaces) is used up.",
        "as root: sysctl user.max_user_namespaces=28633 user.max_mnt_namespaces=28633",
        ("U30", "U31"),
    ),
)
