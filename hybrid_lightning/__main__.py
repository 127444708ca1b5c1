"""``python -m hybrid_lightning``."""

import sys

from hybrid_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
