"""Where results are kept: one SQLite file, one writer, one transaction a run.

A run's curve and result are there together or not at all. Write-ahead logging keeps the file whole if the
process is killed at any moment, and lets others read while the race writes.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "race.sqlite"
APPLICATION = 0x53434855  # "SCHU", in SQLite's own field for it
FORMAT = 1
KEPT = "What was finished is kept. Make room, then run the same command again."

SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE runs (id TEXT PRIMARY KEY, task TEXT NOT NULL, result TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE calibrations (id TEXT PRIMARY KEY, result TEXT NOT NULL) WITHOUT ROWID",
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
            self._prepare()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be used: {error}. Try another --out.") from error

    def __enter__(self) -> Store:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        found = self.note("format")
        if found != str(FORMAT):
            raise StoreError(
                f"{self.path} has format {found}; this version reads {FORMAT}. Try another --out."
            )

    def note(self, key: str) -> str | None:
        """A remark by its key."""
        row = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def write_note(self, key: str, value: str) -> None:
        """Keep a remark."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def guard(self, task: str, fingerprint: str, told: str) -> None:
        """Refuse to mix results of another version of the task's code or data with this one's."""
        before = self.note(f"task {task}")
        if before is None:
            self.write_note(f"task {task}", json.dumps([fingerprint, told]))
            return
        old_fingerprint, old_told = json.loads(before)
        if old_fingerprint != fingerprint:
            raise StoreError(
                f"{self.folder} holds a race on {task!r} by another version of the code or the data "
                f"({old_told}; now {told}). Its runs cannot be mixed with new ones: "
                "race into another --out, or remove the folder."
            )

    def results(self) -> dict[str, dict[str, Any]]:
        """Every result, by run id."""
        return {id: json.loads(text) for id, text in self._database.execute("SELECT id, result FROM runs")}

    def save(self, id: str, task: str, result: Mapping[str, Any]) -> None:
        """Keep a run, whole, in one transaction."""
        row = (id, task, json.dumps(result, allow_nan=False))
        self._write("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", row)

    def calibration(self, id: str) -> dict[str, Any] | None:
        """A calibration by what it depends on."""
        row = self._database.execute("SELECT result FROM calibrations WHERE id = ?", (id,)).fetchone()
        return None if row is None else json.loads(row[0])

    def save_calibration(self, id: str, result: Mapping[str, Any]) -> None:
        """Keep a calibration."""
        self._write("INSERT OR REPLACE INTO calibrations VALUES (?, ?)", (id, json.dumps(result)))

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} could not be written: {error}. {KEPT}") from error
