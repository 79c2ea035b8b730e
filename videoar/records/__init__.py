"""What a run leaves behind: the run record in the store and its mirror in MLflow."""
