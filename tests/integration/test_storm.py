"""The worker is killed again and again under a container that imports, walks and reads. scripts/storm: the long run."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Node, User
from storm import storm

from squashmount.supervisor import RESEND

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < RESEND, reason="needs FUSE_NOTIFY_RESEND: Linux 6.9"
)
def test_no_call_fails_while_the_worker_is_killed(
    make_node: Callable[..., Node], login: Node, alice: User, store: Path, debian: str
) -> None:
    node = make_node(alice, stores=(store,))
    report = storm(login, node, debian, kills=10, every=0.05)
    assert report.failures == []
    assert report.kills == 10
    assert node.log().count("takes over") >= 8  # the last one of a round may have come too late
