"""scripts/bench ids: `squashmount-conf ids check` of 20,000 users and of 200,000 ranges. Root, inside scripts/lab.

Cases, in turn: slapd asked by ldapsearch, and by ldap3; ldapsearch alone; the same users as LDIF; 200,000 ranges in
the files of a node. Wall-clock time, and processor time of the program and what it starts (slapd's is not in it).

Exit codes: 0 measured and both targets met, 1 a target was missed or a check failed, 2 wrong use.
"""

import argparse
import datetime as dt
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from directory_lab import FIRST_RANGE, SIZE, SUFFIX, Account, Directory, directory
from lab import TOP, run
from machine import describe, short_name

FILE_RANGES = 100_000
"""Of uids, and as many of gids."""
TARGETS = {"ldapsearch, 20,000 users": 3.0, "files, 200,000 ranges": 5.0}
"""Seconds of wall-clock time, medians."""
PROGRAM = str(Path(sys.executable).with_name("squashmount-conf"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench ids", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of all cases in turn (default 7)")
    parser.add_argument("--out", metavar="DIR", help="where results.json and README.md go")
    options = parser.parse_args(argv)
    machine = describe()
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    out = Path(options.out or TOP / "bench/results" / f"{date}-{short_name(machine)}-ids")
    lab = Path(os.environ["LAB"])
    with directory(lab, map(Account.number, range(SIZE))) as slapd:
        samples = _measured(_cases(lab, slapd), options.rounds)
    text, missed = _report(date, machine, samples)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"date": date, "machine": machine, "seconds": samples}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "README.md").write_text(text)
    sys.stdout.write(text)
    return 1 if missed else 0


def _cases(lab: Path, slapd: Directory) -> dict[str, tuple[str, ...]]:
    check = (PROGRAM, "ids", "check")
    asked = ("--uri", slapd.uri, "--base", SUFFIX, "--anonymous")
    search = ("ldapsearch", "-x", "-LLL", "-o", "ldif-wrap=no", "-E", "pr=1000/noprompt", "-H", slapd.uri, "-b", SUFFIX)
    dump = lab / "dump.ldif"
    dump.write_text(run(*search, timeout=60).ok() + "\n")
    return {
        "ldapsearch alone": (*search, "-o", "nettimeout=10"),
        "ldapsearch, 20,000 users": (*check, *asked),
        "ldap3, 20,000 users": (*check, *asked, "--source", "ldap3"),
        "LDIF, 20,000 users": (*check, "--ldif", str(dump)),
        "files, 200,000 ranges": (*check, "--root", str(_image(lab / "image"))),
    }


def _image(root: Path) -> Path:
    """Make the files of a node with as many users as there are ranges of 20,000 ids."""
    etc = root / "etc"
    etc.mkdir(parents=True)
    ranges = "".join(f"user{i:06}:{FIRST_RANGE + i * 20_000}:20000\n" for i in range(FILE_RANGES))
    for name in ("subuid", "subgid"):
        (etc / name).write_text(ranges)
    (etc / "passwd").write_text("".join(f"user{i:06}:x:{200_000 + i}:100::/:/bin/bash\n" for i in range(FILE_RANGES)))
    return root


def _measured(cases: dict[str, tuple[str, ...]], rounds: int) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in cases}
    for number in range(rounds + 1):
        for name, argv in cases.items():
            before, start = _processor(), time.perf_counter()
            run(*argv, timeout=120).ok()
            if number:  # the first round warms up
                samples[name]["wall"].append(time.perf_counter() - start)
                samples[name]["processor"].append(_processor() - before)
    return samples


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _report(date: str, machine: dict[str, Any], samples: dict[str, dict[str, list[float]]]) -> tuple[str, bool]:
    rounds = len(next(iter(samples.values()))["wall"])
    where = f"{machine['cpus']} processors ({machine['cpu']}), Linux {machine['kernel']}, {machine['system']}"
    lines = [
        f"# squashmount-conf ids check, {date}",
        "",
        f"{where}, revision {machine['revision']}, load {machine['load_before']} before.",
        f"Medians (least to most) of {rounds} rounds in turn, in seconds. The directory is slapd on this machine:",
        f"{SIZE} users, as many groups, and their ranges in both schemas.",
        "",
        "| case | wall clock | processor | target |",
        "|---|---|---|---|",
    ]
    missed = False
    for name, both in samples.items():
        wall = statistics.median(both["wall"])
        target = TARGETS.get(name)
        said = ""
        if target is not None:
            missed |= wall > target
            said = f"{target:g} s: {'met' if wall <= target else 'missed'}"
        spread = f"{wall:.2f} ({min(both['wall']):.2f} to {max(both['wall']):.2f})"
        lines.append(f"| {name} | {spread} | {statistics.median(both['processor']):.2f} | {said} |")
    return "\n".join(lines) + "\n", missed
