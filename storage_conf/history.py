"""What a graphroot remembers of its first use. Podman overrides storage.conf with it."""

import os
import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True)
class History:
    """Empty where nothing is known: a new graphroot, or the database of Podman 4 (BoltDB, not readable here)."""

    driver: str = ""
    runroot: str = ""


def read_history(graphroot: str) -> History:
    """Ask the database of Podman 5 and later, else guess the driver by the folders of the graphroot."""
    database = os.path.join(graphroot, "db.sql")
    if os.path.exists(database):
        try:
            # immutable: podman may have it open, and a reader must not leave -wal and -shm files behind
            connection = sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)
            try:
                row = connection.execute("SELECT GraphDriver, RunRoot FROM DBConfig").fetchone()
            finally:
                connection.close()
        except sqlite3.Error:
            return History()  # another version's table: the folders would be a guess against the database
        if row:
            return History(str(row[0] or ""), str(row[1] or ""))
    return History(_driver_of_folders(graphroot))


def _driver_of_folders(graphroot: str) -> str:
    try:
        names = [name.removesuffix("-images") for name in os.listdir(graphroot) if name.endswith("-images")]
    except OSError:
        return ""
    return "overlay" if "overlay" in names else (names or [""])[0]
