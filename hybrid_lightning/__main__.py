"""``python -m hybrid_lightning``."""

import sys

from hybrid_lightning.cli import main

if __name__ == "__main__":
    code = main()
    if "lightning" in sys.modules:  # else no command needed it, and importing it would take seconds
        from hybrid_lightning.distributed.fsdp2 import end_process_group

        end_process_group()
    sys.exit(code)
