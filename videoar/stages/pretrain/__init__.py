"""Stage `pretrain`: `stage` has options and ports, `worker` does the work."""
