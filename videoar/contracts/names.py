"""The ids of the data contracts, `name@major`, spelled once.

The contracts themselves are data, in `schemas/`; these are the ones that the code refers to.
`tests.checks.literals` fails when an id is spelled in any other module. A number of a contract that
packages beside each other use is here, too.
"""

SOURCES = "sources@1"
CLIPS = "clips@1"
REJECTS = "rejects@1"
PROFILES = "profiles@1"
TOKENS = "tokens@1"
MODELS = "models@1"
PROMPTS = "prompts@1"
SAMPLES = "samples@1"
FEATURES = "features@1"
EVALSETS = "evalsets@1"
SCORES = "scores@1"
RELEASES = "releases@1"
CHROMA_EVERY = 4
"""In `clips@1`: hashed frames per frame with colours."""
