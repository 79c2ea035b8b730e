"""Objects, create-once records, refs, and datasets as Delta tables.

Why put-if-absent only: it is the one conditional write that file systems and S3 servers share.
Why Delta Lake: an open format that other tools read, and its log needs the same primitive only.
"""

from videoar.storage.store import Store, open_store

__all__ = ["Store", "open_store"]
