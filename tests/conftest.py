"""One compute thread per test process, and the same random examples in every run.

On a busy machine, threads that wait for each other cost more than they give. Examples of property tests are drawn from
the tests' own code, so that a change is judged by itself; `HYPOTHESIS_PROFILE=search` draws new ones.
"""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("fixed", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
