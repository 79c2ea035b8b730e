"""The definition of a pipeline, without anything about where it runs.

`stage` has the three stage shapes and `context` what they receive, `spec` the pipeline file,
`registry` the known stages, `fingerprint` what an output depends on, `work` the pieces of work that
engines run.
"""
