"""Stage `features`: `stage` has options and ports, `worker` does the work."""
