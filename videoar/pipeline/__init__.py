"""What a pipeline is.

The three stage shapes (`stage`), the pipeline file (`spec`), the table of known stages
(`registry`), fingerprints (`fingerprint`) and the work of one shard (`work`).
"""
