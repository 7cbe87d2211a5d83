"""The job a probe sees, from files as Slurm's cgroup plugins make them; the rest is in test_doctor_live.py."""

import subprocess
from pathlib import Path

import pytest
from squashmount.storage_conf.doctor import squash
from squashmount.storage_conf.doctor.node import Node
from squashmount.storage_conf.doctor.places import configuration
from squashmount.storage_conf.finding import Fact, Finding

V2 = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
V1 = "4:memory:/slurm/uid_1000/job_7/step_0\n2:cpu:/slurm/uid_1000/job_7\n0::/\n"


def node(root: Path, cgroup: str, **environ: str) -> Node:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    return Node(environ={"HOME": str(root), **environ}, uid=1000, gid=1000, root=str(root))


@pytest.mark.parametrize(
    ("cgroup", "name", "shown"),
    [
        (V2, "system.slice/slurmstepd.scope/job_7/memory.max", "job 7, memory 512 MiB"),
        (V1, "memory/slurm/uid_1000/memory.limit_in_bytes", "job 7, memory 512 MiB"),
        (V2, "", "job 7"),
    ],
)
def test_the_limit_of_the_job(tmp_path: Path, cgroup: str, name: str, shown: str) -> None:
    if name:
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"{512 << 20}\n")
    answers = list(squash.job(node(tmp_path, cgroup, SLURM_JOB_ID="7")))
    assert Fact("Slurm", shown) in answers


@pytest.mark.parametrize(
    ("job", "cgroup", "word"), [("8", V2, "is in another job"), ("", V2, "SLURM_JOB_ID is not set"), ("", "0::/\n", "")]
)
def test_a_variable_and_a_cgroup_that_disagree(tmp_path: Path, job: str, cgroup: str, word: str) -> None:
    environ = {"SLURM_JOB_ID": job} if job else {}
    found = [one for one in squash.job(node(tmp_path, cgroup, **environ)) if isinstance(one, Finding)]
    texts = [f"{one.what}" for one in found if "cgroup_manager" not in one.what]
    assert len(texts) == bool(word)
    assert word in "".join(texts)


def test_a_graphroot_in_the_memory_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers/storage.conf").write_text('[storage]\ndriver = "overlay"\ngraphroot = "/dev/shm/g"\n')
    here = Node(environ={"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}, uid=1000, gid=1000)
    facts = configuration(here)
    assert facts.graphroot.fstype == "tmpfs"
    (found,) = squash._in_memory(here, facts, 1 << 20)
    assert (found.id, found.severity.value) == ("S08", "warning")
    assert list(squash._in_memory(here, facts, 1 << 50)) == []


@pytest.mark.needs_podman
def test_others_read_the_squash_file_in_the_package(tmp_path: Path) -> None:
    (tmp_path / "squash").write_bytes(squash._SQUASH)
    command = ("unsquashfs", "-no-progress", "-d", str(tmp_path / "out"), str(tmp_path / "squash"))
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "out/etc/hello").read_bytes() == squash._HELLO
    assert (tmp_path / "out/etc/link").readlink() == Path("hello")
