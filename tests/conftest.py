"""Random examples are the same on every machine; HYPOTHESIS_EXAMPLES=N looks for new ones."""

import os

from hypothesis import settings

settings.register_profile("same everywhere", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("search" if os.environ.get("HYPOTHESIS_EXAMPLES") else "same everywhere")
