"""Where results are stored: one SQLite file, one writer, one transaction a run.

A run's curve and result are there together or not at all. Write-ahead logging keeps the file whole if the
process is killed at any moment, and lets others read while the race writes.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast

FILE = "race.sqlite"
APPLICATION = 0x53434855  # "SCHU", in SQLite's own field for it
FORMAT = 2
CALIBRATION = "calibration "  # how the names of remarks begin that are calibrations
STATUS = ("finished", "diverged", "crashed")
RESUME = "Finished runs are stored. Free some space, then give the same command again to resume the race."

SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE runs (id TEXT PRIMARY KEY, task TEXT NOT NULL, result TEXT NOT NULL) WITHOUT ROWID",
)


class StoreError(RuntimeError):
    """The folder of a race cannot be used as asked; the message says why and what to do."""


class Store:
    """The results of one race folder, locked against a second writer while it is open."""

    def __init__(self, folder: Path) -> None:
        """Open the folder's store, or make both."""
        self.folder, self.path = folder, folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be made: {error.strerror or error}. Try another --out."
            ) from error
        if not os.access(folder, os.W_OK):
            raise StoreError(f"{folder} cannot be written to. Try another --out.")
        try:
            self._lock = self._locked()
            self._database = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            # A damaged text is to be named by its row, not by SQLite.
            self._database.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
            self._prepare()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be used: {error}. Try another --out.") from error

    def __enter__(self) -> Store:
        """The store itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the files."""
        self._database.close()
        self._lock.close()

    def _locked(self) -> sqlite3.Connection:
        """Hold a lock that the system releases however the process ends."""
        lock = sqlite3.connect(self.folder / "race.lock", isolation_level=None, timeout=0)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            lock.close()
            advice = "Wait for it, or race into another --out."
            raise StoreError(f"Another race is being written to {self.folder}. {advice}") from error
        return lock

    def _prepare(self) -> None:
        run = self._database.execute
        owner = run("PRAGMA application_id").fetchone()[0]
        tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and owner != APPLICATION:
            raise StoreError(f"{self.path} is a database, but not a race's. Try another --out.")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")  # a kill loses nothing; a power cut at most the last runs
        if not tables:
            run("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                run(statement)
            run(f"PRAGMA application_id = {APPLICATION}")
            run("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
            run("COMMIT")
        found = self.get("format")
        if found != FORMAT:
            raise StoreError(
                f"{self.path} has format {found}; this version reads {FORMAT}. Try another --out."
            )

    def get(self, key: str) -> Any:
        """The remark of this name; None if there is none."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        return self._decoded("meta", key, rows[0][0]) if rows else None

    def put(self, key: str, value: Any) -> None:
        """Store a remark: plain data under a name."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value, allow_nan=False)))

    def guard(self, task: str, fingerprint: str, parts: Mapping[str, str]) -> None:
        """Refuse to mix results of another version of the task's code or data with this one's.

        `parts` are what the fingerprint is made of, by name. Runs that crashed are no results: where nothing else
        is stored, they are forgotten and the new version goes on.
        """
        key = f"task {task}"
        since = datetime.now().astimezone().isoformat(" ", "minutes")
        now = {"fingerprint": fingerprint, "parts": dict(parts), "since": since}
        before = self.get(key)
        if before is not None:
            if not isinstance(before, dict) or not now.keys() <= before.keys():
                raise self._damaged("meta", key, "it does not say which code and data its runs belong to")
            if before["fingerprint"] == fingerprint:
                return
            count = sum(result["status"] != "crashed" for result in self.results(task).values())
            if count:
                raise StoreError(
                    f"{self.folder} holds {count} runs on {task!r} by another version of the code or the data, since "
                    f"{before['since']}. {_changed(before['parts'], parts)} Its runs cannot be mixed with new ones: "
                    "race into another --out, or remove the folder."
                )
        self._write("DELETE FROM runs WHERE task = ?", (task,))
        self.put(key, now)

    def results(self, task: str | None = None) -> dict[str, dict[str, Any]]:
        """Every result, by run id; of one task if it is named."""
        rows = self._read("SELECT id, result FROM runs WHERE ? IS NULL OR task = ?", (task, task))
        return {id: self._result(id, text) for id, text in rows}

    def count(self) -> int:
        """How many runs are stored."""
        return self._read("SELECT count(*) FROM runs")[0][0]

    def forget_crashed(self) -> None:
        """Remove the runs that crashed and the calibrations that failed, and what of both cannot be read."""
        for id, text in self._read("SELECT id, result FROM runs"):
            try:
                crashed = self._result(id, text)["status"] == "crashed"
            except StoreError:
                crashed = True
            if crashed:
                self._write("DELETE FROM runs WHERE id = ?", (id,))
        for key, _ in self._read("SELECT key, value FROM meta WHERE key LIKE ?", (f"{CALIBRATION}%",)):
            try:
                failed = self.get(key)["step"]["seconds"] is None
            except (StoreError, TypeError, KeyError):
                failed = True
            if failed:
                self._write("DELETE FROM meta WHERE key = ?", (key,))

    def _result(self, id: str, text: str) -> dict[str, Any]:
        """A result that has the form of one."""
        found = self._decoded("runs", id, text)
        curve = found.get("curve") if isinstance(found, dict) else None
        if not isinstance(curve, dict) or found.get("status") not in STATUS:
            raise self._damaged("runs", id, "it is not the result of a run")
        columns = list(cast("dict[str, Any]", curve).values())
        if not all(isinstance(each, list) and len(each) == len(columns[0]) for each in columns):
            raise self._damaged("runs", id, "the columns of its curve differ in length")
        return cast("dict[str, Any]", found)

    def _decoded(self, table: str, id: str, text: Any) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError) as error:
            raise self._damaged(table, id, str(error)) from error

    def _damaged(self, table: str, id: str, why: str) -> StoreError:
        advice = "race into another --out, or restore the file"
        if table == "runs" or id.startswith(CALIBRATION):
            advice = f"--retry-crashed removes such rows and runs them again; or {advice}"
        return StoreError(f"{self.path}, table {table}, row {id!r} is damaged: {why}. To resume: {advice}.")

    def save(self, id: str, task: str, result: Mapping[str, Any]) -> None:
        """Store a run, whole, in one transaction."""
        row = (id, task, json.dumps(result, allow_nan=False))
        self._write("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", row)

    def _read(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise StoreError(
                f"{self.path} cannot be read: {error}. Race into another --out, or restore the file."
            ) from error

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} could not be written: {error}. {RESUME}") from error


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Which parts differ, in a sentence."""
    changed = [name for name in new if name in old and old[name] != new[name]]
    words = [f"{name} changed ({old[name]}; now {new[name]})" for name in changed]
    words += [f"{name} is new" for name in new if name not in old]
    words += [f"{name} is gone" for name in old if name not in new]
    data = changed and all(name.endswith(" data") for name in changed) and len(changed) == len(words)
    advice = " Its file did not: draw the data from a generator with a seed." if data else ""
    return f"Of these, {'; '.join(words)}.{advice}"
