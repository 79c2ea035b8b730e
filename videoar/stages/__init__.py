"""The stages of the platform: options, ports and the glue to the packages that do the work.

A stage with heavy imports is a package: `stage` is imported to plan, `worker` only to run.
"""
