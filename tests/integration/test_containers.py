"""Whatever people do with a container works on a squashed image as on an unpacked one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Node, User, wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

# the child image: a file, a whole directory, and a directory made anew
DELETES = "rm /odd/owned && rm -r /odd/many && rm -r /odd/sub && mkdir /odd/sub && echo fresh > /odd/sub/fresh"
STILL_DELETED = "ls -d /odd/owned /odd/many /odd/sub/* 2>/dev/null; cat /odd/sub/fresh; ls /odd | wc -l"


@pytest.fixture
def node(compute: Node, busybox: str) -> Node:
    assert busybox
    return compute


def test_config_of_the_image_reaches_the_container(node: Node, busybox: str) -> None:
    assert node.podman("run", "--rm", busybox).ok() == "hello from /work"
    assert node.podman("run", "--rm", "-e", "GREETING=hi", "-w", "/tmp", busybox).ok() == "hi from /tmp"
    assert node.podman("run", "--rm", "--user", "www", busybox, "id", "-u").ok() == "33"
    assert node.podman("run", "--rm", "--entrypoint", "/bin/echo", busybox, "entry").ok() == "entry"
    assert node.podman("run", "--rm", busybox, "sh", "-c", "echo $WHERE").ok() == "image"
    assert node.podman("run", "--rm", busybox, "false").code == 1
    inspected = node.podman("image", "inspect", "--format", '{{index .Labels "made.by"}}', busybox).ok()
    assert inspected == "squashmount"


def test_the_entrypoint_of_the_image_runs(compute: Node, debian: str) -> None:
    assert compute.podman("run", "--rm", debian).ok() == "debian"


def test_identity_is_that_of_the_registry(node: Node, login: Node, busybox: str) -> None:
    wanted = "{{.Id}} {{.Digest}} {{.Created}} {{.RepoTags}} {{json .History}} {{json .Config}}"
    assert node.podman("image", "inspect", "--format", wanted, busybox).ok() == (
        login.podman("image", "inspect", "--format", wanted, busybox).ok()
    )
    history = ("history", "--no-trunc", "--format", "{{.CreatedBy}}", busybox)
    assert node.podman(*history).ok() == login.podman(*history).ok()
    digest = login.podman("image", "inspect", "--format", "{{.Digest}}", busybox).ok()
    by_digest = f"{busybox.rsplit(':', 1)[0]}@{digest}"
    assert node.podman("run", "--rm", "--pull=never", by_digest, "echo", "same").ok() == "same"


def test_podman_shows_a_true_size(node: Node, busybox: str) -> None:
    size = int(node.podman("image", "inspect", "--format", "{{.Size}}", busybox).ok())
    assert size > Path("/bin/busybox").stat().st_size * 0.9


@pytest.mark.parametrize("overlay", ["kernel", "fuse"])
def test_exec_cp_stop_start_restart(node: Node, busybox: str, overlay: str) -> None:
    node.env["SQUASHMOUNT_OVERLAY"] = overlay
    node.podman("run", "-d", "--name", "kept", busybox, "sleep", "600").ok()
    node.podman("exec", "kept", "sh", "-c", "echo kept > /work/kept; rm /work/mine; rm -r /root").ok()
    source = node.base / "in"
    source.write_text("copied")
    node.podman("cp", str(source), "kept:/work/copied").ok()
    node.podman("cp", "kept:/work/kept", str(node.base / "out")).ok()
    assert (node.base / "out").read_text() == "kept\n"
    node.podman("stop", "-t0", "kept").ok()
    # the other overlay would not understand these deletions: the first choice must stay
    node.env["SQUASHMOUNT_OVERLAY"] = "auto"
    node.podman("start", "kept").ok()
    assert node.podman("exec", "kept", "ls", "/work").ok().split() == ["copied", "kept"]
    node.podman("restart", "-t0", "kept").ok()
    assert node.podman("exec", "kept", "sh", "-c", "cat /work/kept; ls -d /root").code == 1
    assert node.log().count(f"{overlay} overlay") == node.log().count(" overlay (")
    node.podman("rm", "-f", "-t0", "kept").ok()


def test_read_only_and_volumes(node: Node, busybox: str) -> None:
    assert "Read-only" in node.podman("run", "--rm", "--read-only", busybox, "touch", "/x").err
    volume = node.base / "volume"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    node.podman("run", "--rm", "--read-only", "-v", f"{volume}:/data", busybox, "touch", "/data/x").ok()
    assert (volume / "x").exists()
    # an anonymous volume over an image directory starts with the image's content
    assert node.podman("run", "--rm", "-v", "/work", busybox, "cat", "/work/mine").ok() == "33"


def test_image_volume_is_a_read_only_mount(node: Node, busybox: str) -> None:
    mount = f"type=image,source={busybox},destination=/image"
    done = node.podman("run", "--rm", "--mount", mount, busybox, "cat", "/image/work/mine")
    # Podman refuses to mount images of read-only stores as a whole, 4 by "layer not known", 5 in words
    if done.out != "33\n":
        assert any(words in done.err for words in ("layer not known", "read/only store", "read-only store")), done


@pytest.mark.parametrize("overlay", ["auto", "fuse"])
def test_deletions_survive_commit_build_and_mig(
    node: Node, make_node: Callable[..., Node], debian: str, tmp_path: Path, overlay: str
) -> None:
    node.env["SQUASHMOUNT_OVERLAY"] = overlay
    before = node.podman("run", "--rm", debian, "sh", "-c", "ls /odd | wc -l").ok()
    node.podman("run", "--name", "kept", debian, "sh", "-c", DELETES).ok()
    changed = node.podman("diff", "kept").ok().splitlines()
    assert {"D /odd/owned", "D /odd/many", "A /odd/sub/fresh"} <= set(changed)
    node.podman("commit", "-q", "kept", "localhost/child").ok()
    node.podman("rm", "kept").ok()
    expected = ["/odd/sub/fresh", "fresh", str(int(before) - 2)]
    assert node.podman("run", "--rm", "localhost/child", "sh", "-c", STILL_DELETED).ok().split() == expected

    context = node.base / "build"
    context.mkdir()
    (context / "Containerfile").write_text("FROM localhost/child\nRUN rm /odd/noise && echo built > /built\n")
    node.podman("build", "--isolation=chroot", "--network=host", "-t", "localhost/grandchild", str(context)).ok()
    expected[2] = str(int(before) - 3)
    shown = node.podman("run", "--rm", "localhost/grandchild", "sh", "-c", f"{STILL_DELETED}; cat /built").ok()
    assert shown.split() == [*expected, "built"]

    second = node.user.home / f"second-{tmp_path.name}"
    node.run("mkdir", str(second)).ok()
    node.migrate("mig", "localhost/grandchild", str(second)).ok()
    other = make_node(node.user, stores=(second,))
    shown = other.podman("run", "--rm", "localhost/grandchild", "sh", "-c", f"{STILL_DELETED}; cat /built").ok()
    assert shown.split() == [*expected, "built"]


def test_build_from_a_squashed_only_image(node: Node, busybox: str) -> None:
    context = node.base / "build"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {busybox}\nRUN rm -r /work && mkdir /work && echo b > /work/b\n")
    node.podman("build", "--isolation=chroot", "--network=host", "-t", "localhost/built", str(context)).ok()
    assert node.podman("run", "--rm", "localhost/built", "ls", "/work").ok() == "b"


def test_pulling_an_image_that_shares_layers_gets_its_own_base(
    login: Node, make_node: Callable[..., Node], alice: User, store: Path, busybox: str
) -> None:
    """Podman takes layers it finds in an additional store by their id: none of ours may have the id of a real one."""
    context = login.base / "sharing"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {busybox}\nRUN echo more > /more\n")
    child = busybox.replace("busybox:1", "sharing:1")
    login.podman("build", "--isolation=chroot", "--network=host", "-t", child, str(context)).ok()
    login.podman("push", "--tls-verify=false", child).ok()
    login.podman("rmi", child).ok()
    node = make_node(alice, stores=(store,))
    node.podman("pull", "--tls-verify=false", child).ok()
    assert node.podman("run", "--rm", child, "cat", "/work/mine", "/more").ok().split() == ["33", "more"]


def test_saving_a_squashed_only_image_fails_instead_of_writing_an_empty_one(node: Node, busybox: str) -> None:
    done = node.podman("save", "-o", str(node.base / "saved.tar"), busybox)
    assert done.code != 0


def test_file_capabilities_work(node: Node, debian: str) -> None:
    # as for ping: an ordinary user gets CAP_NET_RAW from the file
    script = (
        "import os, shutil, subprocess; shutil.copy('/bin/cat', '/tmp/cat');"
        "os.setxattr('/tmp/cat', 'security.capability', os.getxattr('/odd/capable', 'security.capability'));"
        "print(subprocess.run(['/tmp/cat', '/proc/self/status'], user=33, capture_output=True, text=True).stdout)"
    )
    status = node.podman("run", "--rm", "--cap-add=NET_RAW", debian, "python3", "-c", script).ok()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    assert int(effective.split()[1], 16) == 1 << 13


def test_nothing_is_left(node: Node, busybox: str) -> None:
    node.podman("run", "--rm", busybox).ok()
    assert node.servers()
    wait_for(lambda: not node.servers(), "the server ends when it has been unused for the linger time")
    assert [path.name for path in node.state().iterdir()] == ["log"]
    mounts = node.podman("unshare", "cat", "/proc/self/mountinfo").ok()
    assert str(node.state()) not in mounts
