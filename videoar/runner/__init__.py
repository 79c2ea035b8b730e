"""Plans and executes pipelines, and answers for them afterwards.

`plan` (what would run and why), `execute` (do it), `runs` (the run record), `record` (MLflow),
`lineage`, `report_data`, `doctor`; `api` is the list of verbs that `cli` and `jobs` call.
"""
