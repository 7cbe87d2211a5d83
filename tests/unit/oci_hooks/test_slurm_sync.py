"""What slurm-sync and timestamp plan, what Slurm's variables mean to them, and their hooks as programs."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hook_site import HOOK, HOOK_PATH, ID, Site
from squashmount.oci_hooks import log, slurm_sync
from squashmount.oci_hooks.barrier import Arrival
from squashmount.oci_hooks.slurm_sync import missing, repeated, step_of
from test_architecture import loaded_by

from squashmount.errors import UsageError

STEP = {
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "3",
    "SLURM_PROCID": "5",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "n[08-10]",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURMD_NODENAME": "n09",
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    tmp_path.chmod(0o755)
    made = Site(tmp_path)
    made.rules()
    made.policy.write_text(made.policy.read_text().replace("shipped = false", "shipped = true"))
    return made


def later(site: Site, *arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    environ = {log.STATE: str(site.state / "squashmount"), **environ}
    state = json.dumps({"ociVersion": "1.0.2", "id": ID, "status": "created", "bundle": "/none"}).encode()
    return subprocess.run(
        [HOOK, *arguments], check=False, input=state, capture_output=True, timeout=30, env=environ, cwd="/"
    )


def planned(site: Site, environ: dict[str, str], **annotations: str) -> list[dict[str, object]]:
    done = site.run(site.config(**annotations), **environ)
    assert done.returncode == 0, done.stderr
    hooks: list[dict[str, object]] = json.loads(done.stdout).get("hooks", {}).get("createRuntime", [])
    return hooks


def test_all_tasks_of_a_step_have_the_same_plan_and_each_its_own_number(site: Site) -> None:
    hashes = set()
    for rank in ("0", "5"):
        environ = site.environ(**{**STEP, "SLURM_PROCID": rank, "SLURM_CPUS_ON_NODE": "8"})
        made = json.loads(asked(site, environ, slurm_sync="on").stdout)
        (hook,) = made["hooks"]["createRuntime"]
        assert hook["path"] == HOOK
        expected = str(site.top / ".local/state/squashmount/slurm-sync")
        assert hook["args"] == [HOOK, "slurm-sync", expected, "120", "task"]
        env = dict(entry.split("=", 1) for entry in hook["env"])
        assert {name: env.pop(name) for name in STEP} == {**STEP, "SLURM_PROCID": rank}
        assert set(env) == set(log.LATER)
        hashes.add(made["annotations"]["squashmount.plan"])
    assert len(hashes) == 1


def asked(site: Site, environ: dict[str, str], **annotations: str) -> subprocess.CompletedProcess[bytes]:
    keys = {f"squashmount.{key.replace('_', '-')}": value for key, value in annotations.items()}
    return site.run({**site.config(), "annotations": keys}, **environ)


def test_what_can_be_said_about_it(site: Site) -> None:
    environ = {**STEP, "SQUASHMOUNT_SYNC_DIR": "/site"}
    made = json.loads(asked(site, environ, **{"slurm_sync": "node", "slurm_sync.timeout": "30"}).stdout)
    assert made["hooks"]["createRuntime"][0]["args"][2:] == ["/site/squashmount-sync", "30", "node"]
    # an image can carry annotations
    done = asked(site, environ, **{"slurm_sync": "on", "slurm_sync.directory": "/home/bob"})
    assert done.returncode == 1
    assert b"no annotation says where containers meet: set SQUASHMOUNT_SYNC_DIR in the job" in done.stderr
    for seconds in ("0", "201", "1e9", "-1", ""):
        done = asked(site, STEP, **{"slurm_sync": "on", "slurm_sync.timeout": seconds})
        assert done.returncode == 1
        assert b"expected seconds from 1 to 200" in done.stderr
    done = asked(site, {**STEP, "SQUASHMOUNT_SYNC_DIR": "not/absolute"}, slurm_sync="on")
    assert b"no absolute directory to meet in: SQUASHMOUNT_SYNC_DIR is 'not/absolute'" in done.stderr
    done = asked(site, {}, slurm_sync="on")
    assert "hooks" not in json.loads(done.stdout)
    assert "not done: slurm-sync: this is no step of Slurm (srun)" in site.log()


def test_it_waits_behind_the_hooks_of_others_and_between_the_timestamps(site: Site) -> None:
    (site.top / "sshd").write_text("#!/bin/sh\n")
    sshd = f'[[hooks]]\nstage="createRuntime"\npath="{site.top}/sshd"'
    site.module("a", f'requires = ["slurm-sync", "timestamp"]\n{sshd}')
    hooks = planned(site, site.environ(**STEP), a="on")
    words = [str(hook["args"][1]) if hook["path"] == HOOK else "sshd" for hook in hooks]  # type: ignore[index]
    assert words == ["timestamp", "sshd", "slurm-sync", "timestamp"]


def test_the_hook_as_a_program(site: Site) -> None:
    shared = site.top / "shared"
    alone = {**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    done = later(site, "slurm-sync", str(shared), "9", "task", **alone)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert "all 1 containers of the step are there; task 0 waited 0.0" in site.log()
    done = later(site, "slurm-sync", str(shared), "1", "task", **STEP)
    assert done.returncode == 1
    said = "6 of 7 containers did not come to the barrier in 1 s: ranks 0-4, 6, of nodes n08, n09, n10."
    assert said in done.stderr.decode()
    assert f"refused: {said}" in site.log()
    (site.top / "file").write_text("")
    done = later(site, "slurm-sync", str(site.top / "file"), "1", "task", **STEP)
    assert done.returncode == 1
    assert "cannot meet in" in done.stderr.decode()
    assert "Not a directory" in done.stderr.decode() or "File exists" in done.stderr.decode()
    done = later(site, "slurm-sync", str(shared), "1", "task")
    assert done.returncode == 2
    assert "SLURM_JOB_ID is not set: this is no step of Slurm." in done.stderr.decode()


def test_timestamp_writes_what_it_is_told(site: Site) -> None:
    assert later(site, "timestamp", "the end\nof all").returncode == 0
    assert site.log().rstrip().endswith("timestamp: the end\\nof all")
    assert later(site, "timestamps").returncode == 2


def test_the_place_in_a_step() -> None:
    nodes = {"n08": 3, "n09": 3, "n10": 1}
    assert step_of(STEP, "task") == slurm_sync.Step("42.3.0.task", Arrival(5, 7, "n09"), nodes)
    assert step_of(STEP, "node") == slurm_sync.Step("42.3.0.node", Arrival(1, 3, "n09"), dict.fromkeys(nodes, 1))
    older = {"SLURM_JOB_ID": "1", "SLURM_STEPID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    step = step_of({**older, "SLURM_RESTART_COUNT": "2", "SLURM_STEP_TASKS_PER_NODE": "x"}, "task")
    assert step == ("1.0.2.task", Arrival(0, 2, os.uname().nodename), {})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"SLURM_PROCID": "7"}, "task 7 of 7"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID is '-1', expected a number"),
        ({"SLURM_JOB_ID": "../4"}, "SLURM_JOB_ID is '../4', expected a number"),
        ({"SLURM_STEP_NUM_TASKS": "9" * 15}, "task 5 of 999"),
        ({"SLURM_STEP_ID": ""}, "SLURM_STEP_ID is not set"),
        ({"SLURMD_NODENAME": "a/../../b"}, "SLURMD_NODENAME is 'a/../../b'"),
    ],
)
def test_variables_that_cannot_be(changed: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        step_of({**STEP, **changed}, "task")


@pytest.mark.parametrize("text", ["n[", "n[a-b]", "n[3-1]", "n[1-9999999]", "n[0-9999]x[0-9999]", "n[]"])
def test_node_lists_that_are_none(text: str) -> None:
    assert step_of({**STEP, "SLURM_STEP_NODELIST": text}, "task").nodes == {}


def test_tasks_per_node() -> None:
    assert repeated("2(x3),1") == [2, 2, 2, 1]
    for text in ("", "x", "2(x)", "2(x99999999)", "2,1"):
        assert step_of({**STEP, "SLURM_STEP_TASKS_PER_NODE": text}, "task").nodes == {}


def test_many_missing_ranks_are_counted() -> None:
    step = slurm_sync.Step("x", Arrival(0, 100, "a"), {})
    said = missing(step, {rank: "a" for rank in range(100) if rank % 2})
    assert said == "ranks 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 and 38 more"
    assert missing(step, {rank: "a" for rank in range(100) if rank != 9}) == "rank 9"


def test_the_hooks_of_later_stages_are_light() -> None:
    code = "import oci_hooks; sys.modules['squashmount.oci_hooks'] = oci_hooks; "
    code += "import squashmount.oci_hooks.hook, squashmount.oci_hooks.slurm_sync, squashmount.oci_hooks.timestamp"
    assert loaded_by(code) & HOOK_PATH == set()
