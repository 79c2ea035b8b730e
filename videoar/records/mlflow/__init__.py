"""Mirror of run records and refs in MLflow: one MLflow run per run, one alias per ref of a model.

The store is the source of truth: if MLflow is unavailable, the run succeeds with a warning, and
`videoar doctor --fix` writes what is missing.
"""
