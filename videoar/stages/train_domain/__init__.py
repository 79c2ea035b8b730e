"""Stage `train_domain`: `stage` has options and ports, `worker` does the work."""
