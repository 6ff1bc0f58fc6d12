"""One compute thread per test process: on a busy machine, threads that wait for each other cost more than they give."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
