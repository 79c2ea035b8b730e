"""Plans and executes pipelines.

`inputs` resolves what a pipeline reads, `decide` whether a stage has to run, `plan` prints these
decisions and `execute` acts on them.
"""
