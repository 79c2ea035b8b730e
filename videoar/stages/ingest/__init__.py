"""Stage `ingest`: `stage` has options and ports, `worker` does the work."""
