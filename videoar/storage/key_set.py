"""A set of keys on disk: a store may have more of them than memory holds."""

import sqlite3
from pathlib import Path


class KeySet:
    """Keys in a file of SQLite, for one process.

    Args:
        path: new file; its owner removes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = sqlite3.connect(path, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=OFF")
        self._file.execute("PRAGMA synchronous=OFF")
        self._file.execute("CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID")
        self._file.execute("BEGIN")  # never committed: one transaction is many times faster

    def add(self, key: str) -> bool:
        """Add a key; return whether it is new."""
        return self._file.execute("INSERT OR IGNORE INTO keys VALUES (?)", (key,)).rowcount == 1

    def __contains__(self, key: str) -> bool:
        found = self._file.execute("SELECT 1 FROM keys WHERE key = ?", (key,))
        return found.fetchone() is not None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
