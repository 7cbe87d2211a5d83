"""scripts/bench hooks; with Debian 12's MPICH on the host, so not on the second platform."""

import json
import os
from pathlib import Path

import pytest
from lab import TOP, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


def test_hooks_are_measured_against_no_hook(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key not in {"LAB", "SQUASHMOUNT_LAB_CGROUP"}}
    argv = (str(TOP / "scripts/bench"), "hooks", "--rounds=2", f"--out={tmp_path}")
    done = run(*argv, env=env | {"SQUASHMOUNT_BENCH_READY": "1"}, timeout=300)
    # a missed target is 1, which two rounds on a busy machine do not tell
    assert "Traceback" not in done.err, done.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert {len(values) for values in results["seconds"].values()} == {2}
    assert results["seconds"].keys() >= {"no hook", "interpreter", "nothing applies", "MPI swapped, plan remembered"}
    assert "| no hook |" in (tmp_path / "README.md").read_text()
