"""The work of a stage run that every engine runs: shards, ranks and reductions of a task."""
