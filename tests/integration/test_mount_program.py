"""The mount program called as Podman calls it, with option strings that are hard to make Podman write."""

from pathlib import Path

import pytest
from lab import Done, Node, run, wait_for
from peers import top_layer

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

ODD = "a b:c,d\\e"
KIND = "stat -f -c %T . | sed s/fuseblk/fuse/"  # what coreutils calls FUSE before 9.7


@pytest.fixture
def top(store: Path, busybox: str) -> Path:
    """The layer directory in the store that has busybox' squash: the store may hold other images, too."""
    directory = store / "overlay" / top_layer(store, busybox)
    assert (store / "overlay/l" / f"{(directory / 'link').read_text()}.squash").exists()
    return directory


def escaped(path: Path | str) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def in_mount(node: Node, options: str, script: str) -> Done:
    """Mount on `t` below the node's base, run a script there, unmount: all inside Podman's namespace."""
    program = node.product / "bin/squashmount-mount"
    target = node.base / "t"
    steps = (
        f'cd {node.base} && mkdir -p t && "$0" -o "$1" {target} && (cd t && {script}); code=$?; umount t; exit $code'
    )
    return node.podman("unshare", "sh", "-c", steps, str(program), options)


def upper(node: Node, name: str = "c") -> tuple[Path, str]:
    base = node.base / name
    node.run("mkdir", "-p", str(base / "diff"), str(base / "work")).ok()
    return base, f"upperdir={escaped(base / 'diff')},workdir={escaped(base / 'work')}"


@pytest.mark.parametrize("overlay", ["kernel", "fuse"])
def test_odd_characters_in_every_path(compute: Node, store: Path, top: Path, overlay: str) -> None:
    compute.env["SQUASHMOUNT_OVERLAY"] = overlay
    odd_store = compute.base / ODD
    odd_store.symlink_to(store)
    plain = compute.base / "layer:1,\\x/diff"
    compute.run("mkdir", "-p", str(plain)).ok()
    compute.run("touch", str(plain / "above")).ok()
    # fuse-overlayfs 1.10 cannot have a colon in its upper directory, whoever calls it
    base, options = upper(compute, f"up {ODD}" if overlay == "kernel" else "up a b,d")
    link = (top / "link").read_text()
    lower = f"lowerdir={escaped(plain)}:{escaped(odd_store)}/overlay/l/{link}"
    done = in_mount(compute, f"{lower},{options},,volatile", "cat work/mine; ls -d above; echo new > written")
    assert done.ok().split() == ["33", "above"]
    assert (base / "diff/written").read_text() == "new\n"


def test_more_layers_than_a_page_of_options_holds(compute: Node, top: Path) -> None:
    lowers = []
    for number in range(100):
        layer = compute.base / "layers" / f"{number:03}{'x' * 60}" / "diff"
        compute.run("mkdir", "-p", str(layer)).ok()
        lowers.append(layer)
    script = (
        "for i in $(seq 0 99); do d=$(echo layers/$(printf %03d $i)*/diff); echo $i > $d/top; echo $i > $d/n$i; done"
    )
    compute.run("sh", "-c", f"cd {compute.base}; {script}").ok()
    _base, options = upper(compute)
    lower = ":".join([*map(str, lowers), str(top / "diff")])
    done = in_mount(compute, f"lowerdir={lower},{options}", "cat top; ls n* | wc -l; cat work/mine")
    assert done.ok().split() == ["0", "100", "33"]


def test_volatile_upper_layers_can_be_mounted_again(compute: Node, top: Path) -> None:
    _base, options = upper(compute)
    call = f"lowerdir={top}/diff,{options},volatile"
    in_mount(compute, call, "touch once").ok()
    assert in_mount(compute, call, f"ls once; {KIND}").ok().split() == ["once", "overlayfs"]


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ("squash_to_uid=5,squash_to_gid=6", "5:6"),
        ("uidmapping=:0:100:50,gidmapping=:0:200:50", "133:233"),
        ("uidmapping=0:1:5,gidmapping=0:1:5", "65534:65534"),
    ],
)
def test_ids_are_shifted(compute: Node, top: Path, ids: str, shown: str) -> None:
    _base, options = upper(compute)
    done = in_mount(compute, f"lowerdir={top}/diff,{options},{ids},volatile", "stat -c %u:%g work/mine")
    assert done.ok() == shown


def test_read_only_spellings(compute: Node, top: Path) -> None:
    for lower in (f"{top}/diff:{top}/empty", f"{top}/diff:{top}/diff,ro", f"{top}/diff"):
        done = in_mount(compute, f"lowerdir={lower}", "cat work/mine; touch x")
        assert done.out == "33\n"
        assert "Read-only" in done.err


def test_unknown_options_are_not_dropped(compute: Node, top: Path) -> None:
    _base, options = upper(compute)
    call = f"lowerdir={top}/diff,{options},volatile,brand_new=1"
    in_mount(compute, call, "true")
    assert "brand_new=1 is fuse-overlayfs' own" in compute.log()
    compute.env["SQUASHMOUNT_OVERLAY"] = "kernel"
    _base, options = upper(compute, "another")
    refused = in_mount(compute, f"lowerdir={top}/diff,{options},volatile,brand_new=1", "true")
    assert refused.code == 2
    assert "brand_new=1" in refused.err
    assert "hint:" in refused.err


def test_options_only_fuse_overlayfs_has_work(compute: Node, top: Path) -> None:
    _base, options = upper(compute)
    done = in_mount(compute, f"lowerdir={top}/diff,{options},xattr_permissions=2", f"cat work/mine; {KIND}")
    assert done.ok().split() == ["33", "fuse"]
    assert "xattr_permissions=2 is fuse-overlayfs' own" in compute.log()


def unpacked(node: Node) -> str:
    for name in ("one", "two"):
        node.run("mkdir", "-p", str(node.base / name)).ok()
        node.run("touch", str(node.base / name / name)).ok()
    _base, options = upper(node)
    return f"lowerdir={node.base}/one:{node.base}/two,{options}"


def test_images_that_are_not_squashed_get_kernel_overlay(compute: Node) -> None:
    done = in_mount(compute, unpacked(compute), f"ls; rm one; {KIND}")
    assert done.ok().split() == ["one", "two", "overlayfs"]
    # the deletion is a device that kernel overlay made: it stays with kernel overlay
    assert in_mount(compute, unpacked(compute), "ls").ok() == "two"
    assert not compute.servers()


@pytest.mark.parametrize("reason", ["forced", "whiteout", "foreign upper", "shifted"])
def test_images_that_are_not_squashed_get_fuse_overlayfs_where_only_that_is_right(compute: Node, reason: str) -> None:
    call = unpacked(compute)
    if reason == "forced":
        compute.env["SQUASHMOUNT_OVERLAY"] = "fuse"
    elif reason == "whiteout":
        compute.run("touch", str(compute.base / "one/.wh.two")).ok()
    elif reason == "foreign upper":
        compute.run("touch", str(compute.base / "c/diff/.wh.two")).ok()
    else:
        call += ",uidmapping=0:100:50,gidmapping=0:100:50"
    done = in_mount(compute, call, f"ls; {KIND}")
    deleted = reason in {"whiteout", "foreign upper"}
    assert done.ok().split() == (["one"] if deleted else ["one", "two"]) + ["fuse"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-o"], 2, "Expected"),
        (["-o", "upperdir=/u", "/t"], 2, "lowerdir"),
        (["-o", "lowerdir=l/NOWHERE", "/t"], 5, "does not exist"),
        (["nonsense"], 2, "invalid choice"),
    ],
)
def test_wrong_calls(compute: Node, arguments: list[str], code: int, says: str) -> None:
    done = compute.squashmount(*arguments)
    assert done.code == code
    assert says in done.err
    assert "Traceback" not in done.err


def test_without_fuse_the_cause_is_named(compute: Node, top: Path) -> None:
    _base, options = upper(compute)
    program = compute.product / "bin/squashmount-mount"
    call = f"lowerdir={top}/diff,{options}"
    hidden = "mount -t tmpfs none /dev && touch /dev/null && exec"
    inner = f'mkdir -p {compute.base}/t; {hidden} "$0" -o "$1" {compute.base}/t'
    done = compute.podman("unshare", "unshare", "--mount", "sh", "-c", inner, str(program), call)
    assert done.code == 9, done
    assert "/dev/fuse" in done.err
    assert "hint:" in done.err
    # nothing half-made stays: the next start works
    assert in_mount(compute, call, "cat work/mine").ok() == "33"


def test_the_quick_start_takes_no_modules_of_the_user(compute: Node, top: Path) -> None:
    poison = compute.base / "python"
    compute.run("mkdir", str(poison)).ok()
    for name in ("os.py", "sitecustomize.py", "squashmount.py"):
        compute.run("sh", "-c", f"echo 'raise SystemExit(99)' > {poison}/{name}").ok()
    compute.env |= {"PYTHONPATH": str(poison), "PYTHONHOME": "/nowhere"}
    _base, options = upper(compute)
    assert in_mount(compute, f"lowerdir={top}/diff,{options}", "cat work/mine").ok() == "33"


def test_the_quick_start_is_found_through_links(compute: Node, top: Path) -> None:
    link = compute.base / "mount program"
    link.symlink_to(compute.product / "bin/squashmount-mount")
    _base, options = upper(compute)
    script = f'mkdir -p {compute.base}/t; exec "$0" -o "$1" {compute.base}/t'
    compute.podman("unshare", "sh", "-c", script, str(link), f"lowerdir={top}/diff,{options}").ok()
    assert "kernel overlay" in compute.log()
    compute.podman("unshare", "umount", str(compute.base / "t")).ok()


def test_all_three_commands_are_installed(product: Path) -> None:
    for name in ("squashmount", "migrate2scratch", "squashmount-conf"):
        assert "usage:" in run(str(product / "bin" / name), "--help").ok()
    versions = run(str(product / "bin/pip"), "list", "--format=freeze").ok()
    assert "pyfuse3" not in versions


def test_servers_of_direct_calls_end_too(compute: Node, top: Path) -> None:
    _base, options = upper(compute)
    in_mount(compute, f"lowerdir={top}/diff,{options}", "true").ok()
    wait_for(lambda: not compute.servers(), "the server ends after the linger time")
