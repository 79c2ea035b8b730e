"""VideoAR: raw video in, an evaluated and promoted video-generation model out.

`videoar.api` has one function per verb of the command line. Packages, from the bottom up (imports
go downwards only, enforced by `tool.importlinter`):
`core` < `contracts` < `storage` < `model | media | curation` < `pipeline` <
`training | evaluation` < `stages | records` < `engine | report` < `runner | admin` < `bench` <
`api` < `cli`. Importing `videoar` defines names and has no side effect.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# For type checkers; at run time `__getattr__` resolves the same name.
if TYPE_CHECKING:
    from videoar.api import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # on first use: `import videoar` stays light
    if name == "load":
        return import_module("videoar.api").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
