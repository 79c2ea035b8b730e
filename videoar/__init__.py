"""VideoAR: raw video in, an evaluated and promoted video-generation model out.

`videoar.api` has one function per verb of the command line. Packages, from the bottom up (imports
go downwards only, enforced by `tool.importlinter`):
`core` < `contracts` < `storage` < `model | media | curation` < `pipeline` <
`training | evaluation` < `stages | records` < `engine | report` < `runner | admin` < `serving` <
`bench` < `api` < `cli`. Importing `videoar` defines names and has no side effect.
"""

from typing import TYPE_CHECKING

from videoar.core.lazy import lazy_names

if TYPE_CHECKING:
    from videoar.api import load as load

__version__ = "0.1.0"
__getattr__ = lazy_names(__name__, {"load": "videoar.api:load"})
