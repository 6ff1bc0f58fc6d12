"""`python -m woodshed` is the same as `woodshed`."""

from __future__ import annotations

import sys

from woodshed.cli.main import main

sys.exit(main())
