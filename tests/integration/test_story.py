"""The main job: pull, squash once, run on another machine that sees only the store."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Node, User, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


def test_login_node_lists_the_image_twice(login: Node, busybox: str, store: Path) -> None:
    store_option = f"--storage-opt=additionalimagestore={store}"
    listed = login.podman(
        store_option, "images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}} {{.ReadOnly}}"
    ).ok()
    lines = [line.split() for line in listed.splitlines() if busybox in line]
    assert sorted(line[2] for line in lines) == ["false", "true"]
    assert len({line[0] for line in lines}) == 1


def test_compute_node_lists_it_once_and_runs_it(compute: Node, busybox: str) -> None:
    listed = compute.podman("images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}").ok()
    assert [line for line in listed.splitlines() if busybox in line] == [f"{busybox} true"]
    assert " false" not in listed
    assert compute.podman("run", "--rm", busybox).ok() == "hello from /work"
    assert "kernel overlay (fastest)" in compute.log()


def test_another_users_read_only_store(
    make_node: Callable[..., Node], lab: Path, bob: User, busybox: str, debian: str, store: Path
) -> None:
    seen = lab / "read-only-store"
    seen.mkdir()
    run("mount", "--bind", str(store), str(seen)).ok()
    run("mount", "-o", "remount,bind,ro", str(seen)).ok()
    try:
        node = make_node(bob, stores=(seen,))
        script = "id -u; stat -c %u /work/mine /bin/busybox; touch /work/new /new; cat /work/mine"
        assert node.podman("run", "--rm", busybox, "sh", "-c", script).ok().split() == ["0", "33", "0", "33"]
        owners = ("stat", "-c", "%u:%g %a", "/odd/owned", "/odd/high", "/odd/setuid")
        shown = node.podman("run", "--rm", debian, *owners).ok().splitlines()
        assert shown == ["1000:2000 644", "65533:65533 644", "0:0 4755"]
        node.close()
    finally:
        run("umount", str(seen)).ok()
