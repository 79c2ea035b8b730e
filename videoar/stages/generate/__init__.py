"""Stage `generate`: `stage` has options and ports, `worker` does the work."""
