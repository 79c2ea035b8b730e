"""Stage `score`: `stage` has options and ports, `worker` does the work."""
