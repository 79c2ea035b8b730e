"""Engines: run the work of stages in this process or on Ray.

`base` is the protocol, `inline` the in-process engine, `ray_*` run map stages on Ray Data actor
pools (or a Ray Serve deployment), loop stages on Ray Train and reductions as Ray tasks. The only
package that may import ray, and the only one that retries a failed piece of work.
"""
