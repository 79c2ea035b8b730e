"""The definition of a pipeline, without anything about where it runs.

`stage` has the three stage shapes and `context` what they receive, `registry` the known stages,
`options` what can be set in them, `fingerprint` what an output depends on, `work` the pieces of
work that engines run. The pipeline file is read by `spec`, with `overrides`, `input_url` and
`local_path` for its values and `mistakes` for what is wrong with it; `stage_reference` and
`codegen` describe it to people, programs and editors.
"""
