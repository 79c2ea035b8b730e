"""Everything that is kept: objects, create-once records, refs, and datasets as Delta tables.

Why put-if-absent and nothing more: it is the one conditional write that file systems and S3 servers
share. Why Delta: an open format that others read, whose log needs that same primitive only.
"""

from videoar.storage.store import Store, open_store

__all__ = ["Store", "open_store"]
