"""A set of keys on disk: a store may have more of them than memory holds."""

import sqlite3
from pathlib import Path

from videoar.core.errors import DiskError


class KeySet:
    """Keys in a file of SQLite, for one process.

    Each call raises `DiskError` if there is too little space for the file.

    Args:
        path: new file; its owner removes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = sqlite3.connect(path, isolation_level=None)
        self._execute("PRAGMA journal_mode=OFF")
        self._execute("PRAGMA synchronous=OFF")
        self._execute("CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID")
        self._execute("BEGIN")  # never committed: one transaction is many times faster

    def add(self, key: str) -> bool:
        """Add a key; return whether it is new."""
        return self._execute("INSERT OR IGNORE INTO keys VALUES (?)", key).rowcount == 1

    def __contains__(self, key: str) -> bool:
        return self._execute("SELECT 1 FROM keys WHERE key = ?", key).fetchone() is not None

    def _execute(self, sql: str, *values: str) -> sqlite3.Cursor:
        try:
            return self._file.execute(sql, values)
        except sqlite3.DatabaseError as error:
            hint = "free some space, or set TMPDIR"
            raise DiskError(str(self.path.parent), str(error), hint) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
