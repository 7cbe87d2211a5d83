"""scripts/bench measures, checks what it measures, judges and writes its results; small, and not with every stack."""

import importlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from lab import TOP, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


def bench(out: Path, *options: str) -> tuple[str, dict[str, Any], str]:
    """Run it; return what it printed, its JSON and its Markdown."""
    # this lab's outside is not needed: the benchmark makes a lab of its own
    env = {key: value for key, value in os.environ.items() if key not in {"LAB", "SQUASHMOUNT_LAB_CGROUP"}}
    argv = (str(TOP / "scripts/bench"), "--quick", "--rounds=1", *options, f"--out={out}")
    done = run(*argv, env=env | {"SQUASHMOUNT_BENCH_READY": "1"}, timeout=400)
    return done.ok(), json.loads((out / "results.json").read_text()), (out / "README.md").read_text()


def test_a_quick_run_writes_json_markdown_and_a_plot(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (
        "--stacks=native,ours-wire,ours-profiled",
        "--workloads=import,numeric,first",
        "--parts=containers,servers",
    )
    printed, results, report = bench(out, *options)
    assert "import cold x1" in printed

    assert results["failures"] == []
    assert results["skipped"] == []
    assert set(results["stacks"]) == {"native", "ours-wire", "ours-profiled"}
    for case in ("import cold x1", "import warm x1", "numeric cold x1"):
        for stack in set(results["stacks"]) - ({"ours-profiled"} if case.startswith("numeric") else set()):
            found = {kind: values[0] for kind, values in results["samples"][case][stack].items()}
            assert 0.0005 < found["inside"] < found["wall"] < 60, (case, stack, found)
            assert 0 < found["first"] < found["wall"]
            assert 0.005 < found["cpu"] < 60
    assert 0 < results["samples"]["first warm x1"]["ours-wire"]["first"][0] < 60
    # a supervisor and a worker: Python, so some MiB each
    cost = results["servers"]["import"]["ours-wire"]
    assert cost["processes"] >= 2
    assert 2 < cost["pss_mib"] < 500
    assert 0 < cost["cpu"] < 60
    assert results["machine"]["cpus"] == os.cpu_count()
    for text in (json.dumps(results), report, (out / "plot.svg").read_text()):
        assert os.uname().nodename not in text.replace("localhost", "")

    assert re.search(r"\| import warm x1 \| \d\.\d{3} \(.*\) x1\.00 \| \d\.\d{3} \(.*\) x\d", report)
    assert re.search(r"\| import storm, warm, ours / native \| ≤ 1.05 \| \d+\.\d\d \| (met|MISSED) \|", report)
    assert "| mount ready, 500,000 files, over interpreter start | ≤ 150 ms |  | not measured |" in report
    assert ET.parse(out / "plot.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_squashing_and_images_of_many_files_are_measured_beside_the_peers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stacks = "ours-wire,bare-wire,bare-pyfuse3,bare-kernel,bare-squashfuse_ll,bare-squashfuse_ll-0.5"
    _printed, results, report = bench(out, f"--stacks={stacks}", "--workloads=walk", "--parts=servers,mig,many")
    assert results["failures"] == []
    (squashing,) = ({kind: values[0] for kind, values in one.items()} for one in results["mig"].values())
    assert squashing["seconds"] > 0.1
    assert squashing["size"] > 10 << 20
    assert squashing["memory"] > 10  # mksquashfs alone needs more
    assert "| mig, zstd-3 (default) |" in report

    for size in ("500", "2000"):
        assert 0.01 < results["many"]["mount"][size][0] < 60
    assert set(results["many"]["stacks"]) == set(stacks.split(",")) - {"ours-wire", "bare-pyfuse3"}
    assert results["many"]["stacks"]["bare-wire"]["pss_walk"][0] > 2
    assert results["many"]["stacks"]["bare-kernel"]["pss_walk"][0] == 0
    for stack in ("bare-wire", "bare-pyfuse3", "bare-squashfuse_ll", "bare-squashfuse_ll-0.5"):
        assert results["servers"]["walk"][stack]["pss_mib"] > 0, stack
    assert "An image of 2000 files" in report
    # it is about half a million files: a small image says nothing
    assert "| mount ready, 500,000 files, over interpreter start | ≤ 150 ms |  | not measured |" in report


def test_targets_are_judged_by_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOP / "bench"))
    targets = importlib.import_module("targets")
    imports = {"native": [1.0, 1.0, 9.0], "ours-wire": [1.2, 1.1, 1.1]}
    mounts = {"500": [0.10], "50000": [0.10], "500000": [0.16]}
    walks = {"bare-wire": {"walk": [1.0], "pss_walk": [100.0], "pss_scatter": [300.0]}, "bare-kernel": {"walk": [2.0]}}
    results = {
        "samples": {"import warm x1": {name: {"wall": values} for name, values in imports.items()}},
        "many": {"sizes": [500, 50000, 500000], "interpreter": [0.02], "mount": mounts, "stacks": walks},
        "mig": {"zstd-3": {"seconds": [7.0], "size": [90]}, "podman-hpc": {"seconds": [10.0], "size": [100]}},
    }
    found = {one.text: (one.measured, one.verdict) for one in targets.outcomes(results)}
    assert found["import storm, warm, ours / native"] == ("1.10", "MISSED")
    assert found["import storm, first, ours / native warm"] == ("", "not measured")
    assert found["mount ready, 500,000 files, over interpreter start"] == ("140 ms", "met")
    assert found["mount ready, 500,000 files / 500 files (flat)"] == ("1.60", "MISSED")
    assert found["server memory, 500,000 files, fully walked"] == ("100 MiB", "met")
    assert found["server memory, 500,000 files, walked, then 25,000 files read"] == ("300 MiB", "MISSED")
    assert found["walk + lstat, 500,000 files, bare, cold, ours / kernel squashfs"] == ("0.50", "met")
    assert found["`mig` / podman-hpc migrate, time"] == ("0.70", "met")
    assert found["`mig` / podman-hpc migrate, size of the squash"] == ("0.90", "MISSED")


def test_the_workload_notices_that_python_wrote_pyc_files(tmp_path: Path) -> None:
    pack = tmp_path / "bench/modules/pack000"
    (pack / "__pycache__").mkdir(parents=True)
    (pack / "__init__.py").touch()
    (pack / "mod00000.py").write_text("VALUE = 0\n")
    (tmp_path / "bench/made").touch()
    argv = ("/usr/bin/python3", str(TOP / "bench/workload.py"), "import", str(tmp_path), '{"modules": 1}')
    run("mount", "--bind", str(tmp_path), str(tmp_path)).ok()  # the workload says what is mounted on its root
    try:
        time.sleep(0.1)
        written = [json.loads(run(*argv, env={"PATH": "/usr/bin", **env}).ok())["pyc_written"] for env in ENVIRONMENTS]
    finally:
        run("umount", str(tmp_path)).ok()
    assert written == [0, 1]


ENVIRONMENTS: tuple[dict[str, str], ...] = ({"PYTHONDONTWRITEBYTECODE": "1"}, {})


@pytest.mark.parametrize(
    ("workload", "found"),
    [
        ("import", {"count": 100, "sum": 0, "pyc_written": 0}),
        ("import", {"count": 100, "sum": 4950, "pyc_written": 1}),
        ("numeric", {"count": 3, "pyc_written": 1}),
        ("numeric", {"count": 2, "pyc_written": 0}),
        ("read", {"bytes": 4096, "sum": 0}),
        ("small", {"bytes": 0, "sum": 0}),
        ("open", {"count": 1600, "failed": 1}),
        ("walk", {"count": 3}),
    ],
)
def test_a_container_that_did_not_do_the_work_is_no_sample(
    workload: str, found: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOP / "bench"))
    inputs, stacks = importlib.import_module("inputs"), importlib.import_module("stacks")
    place = stacks.Place(tmp_path, None, tmp_path, tmp_path, inputs.QUICK, None, {"container": 7000, "image": 6999})
    wire = stacks.OursWire(place)
    with pytest.raises(stacks.BenchError, match=f"{workload} found"):
        wire.check(workload, json.dumps({"seconds": 1.0, "began": 1.0, "root": "overlay", **found}))
    true = {"import": {"count": 100, "sum": 4950, "pyc_written": 0}, "walk": {"count": 7000}}
    for name, good in true.items():
        assert wire.check(name, json.dumps({"seconds": 1.0, "root": "overlay", **good}))["seconds"] == 1.0
        with pytest.raises(stacks.BenchError, match="/ is ext4"):
            wire.check(name, json.dumps({"seconds": 1.0, "root": "ext4", **good}))
