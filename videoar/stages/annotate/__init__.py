"""Stages `caption` and `embed`: `stage` has options and ports, `worker` runs the networks."""
