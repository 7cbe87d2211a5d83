"""scripts/bench measures, checks what it measures, and writes its results; small, and only two stacks."""

import importlib
import json
import os
import re
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from lab import TOP, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]


def test_a_quick_run_writes_json_markdown_and_a_plot(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--quick", "--rounds=1", "--stacks=native,ours-wire", "--workloads=import", f"--out={out}")
    # this lab's outside is not needed: the benchmark makes a lab of its own
    env = {key: value for key, value in os.environ.items() if key not in {"LAB", "SQUASHMOUNT_LAB_CGROUP"}}
    done = run(str(TOP / "scripts/bench"), *options, env=env | {"SQUASHMOUNT_BENCH_READY": "1"}, timeout=300)
    assert "import cold x1" in done.ok()

    results = json.loads((out / "results.json").read_text())
    assert results["failures"] == []
    assert set(results["stacks"]) == {"native", "ours-wire"}
    for state in ("cold", "warm"):
        for stack in ("native", "ours-wire"):
            (wall,), (inside,) = (results["samples"][f"import {state} x1"][stack][kind] for kind in ("wall", "inside"))
            assert 0.0005 < inside < wall < 60, (state, stack, inside, wall)
    assert results["machine"]["cpus"] == os.cpu_count()
    for text in (json.dumps(results), (out / "README.md").read_text(), (out / "plot.svg").read_text()):
        assert os.uname().nodename not in text.replace("localhost", "")

    report = (out / "README.md").read_text()
    assert re.search(r"\| import warm x1 \| \d\.\d{3} \(.*\) x1\.00 \| \d\.\d{3} \(.*\) x\d", report)
    assert "| import storm, warm, ours / native | ≤ 1.05 |" in report
    assert ET.parse(out / "plot.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


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
    place = stacks.Place(tmp_path, None, tmp_path, tmp_path, inputs.QUICK, {"container": 7000, "image": 6999})
    wire = stacks.OursWire(place)
    with pytest.raises(stacks.BenchError, match=f"{workload} found"):
        wire.check(workload, json.dumps({"seconds": 1.0, "began": 1.0, "root": "overlay", **found}))
    true = {"import": {"count": 100, "sum": 4950, "pyc_written": 0}, "walk": {"count": 7000}}
    for name, good in true.items():
        assert wire.check(name, json.dumps({"seconds": 1.0, "root": "overlay", **good}))["seconds"] == 1.0
        with pytest.raises(stacks.BenchError, match="/ is ext4"):
            wire.check(name, json.dumps({"seconds": 1.0, "root": "ext4", **good}))
