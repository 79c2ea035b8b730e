"""Stage `train_tokenizer`: `stage` has options and ports, `worker` does the work."""
