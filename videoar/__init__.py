"""VideoAR: raw video in, an evaluated and promoted video-generation model out, again and again.

Packages, from the ground up (an import goes downwards only, see `tool.importlinter`):
`core` < `contracts` < `storage` < `model | media` < `pipeline` < `training | evaluation` <
`stages` < `engine` < `runner` < `cli`. Importing `videoar` defines names and does nothing else.
"""

__version__ = "0.1.0"
