"""``python -m cleanai``, as ``torchrun -m cleanai run TS2`` needs it."""

from __future__ import annotations

import sys

from cleanai.cli import main

if __name__ == "__main__":
    sys.exit(main())
