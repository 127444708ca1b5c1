"""``python -m hybrid_lightning``."""

import sys

from hybrid_lightning.cli import main
from hybrid_lightning.distributed.fsdp2 import end_process_group

if __name__ == "__main__":
    code = main()
    end_process_group()
    sys.exit(code)
