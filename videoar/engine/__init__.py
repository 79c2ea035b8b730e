"""Where stages run.

`base` is the protocol, `inline` runs in this process, `ray_*` on Ray: map stages on Ray Data actor
pools (or a Ray Serve deployment), loop stages on Ray Train, reductions as tasks. The only package
that may import ray; it retries what is retryable and nothing else does.
"""
