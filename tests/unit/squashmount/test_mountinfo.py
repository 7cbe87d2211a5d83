"""Lines of /proc/PID/mountinfo as the kernel writes them."""

import os

from squashmount.mountinfo import Mount, find_process, namespace_id, parse_line, read_mounts

OVERLAY = (
    "98 61 0:51 / /g/overlay/abc/merged rw,nodev,relatime shared:29 master:3 - overlay overlay "
    "rw,lowerdir=/run/user/1/squashmount/0123/m,upperdir=/g/overlay/abc/diff,userxattr\n"
)


def test_optional_fields_vary_in_number() -> None:
    mount = parse_line(OVERLAY)
    assert mount[:4] == (98, "/g/overlay/abc/merged", "overlay", "overlay")
    assert "lowerdir=/run/user/1/squashmount/0123/m" in mount.options
    assert parse_line("1 1 0:1 / / rw - rootfs none rw\n") == Mount(1, "/", "rootfs", "none", "rw")


def test_octal_escapes() -> None:
    assert parse_line("1 1 0:1 / /a\\040b\\011c\\012d\\134e rw - tmpfs none rw\n").target == "/a b\tc\nd\\e"


def test_own_mounts_and_namespace() -> None:
    assert "/" in {mount.target for mount in read_mounts()}
    assert namespace_id() == namespace_id(str(os.getpid()))


def test_a_process_of_a_namespace_is_found_but_never_ourselves() -> None:
    found = find_process(namespace_id())
    assert found is None or int(found) != os.getpid()
    assert find_process(1) is None
