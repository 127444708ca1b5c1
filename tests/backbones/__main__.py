"""The tests of this folder, in an environment with timm and torchvision: ``python -m tests.backbones``."""

import sys

from tests.backbones import operators  # noqa: F401  before pytest imports lightning

if __name__ == "__main__":
    import pytest

    sys.exit(pytest.main(["tests/backbones", "-p", "no:cacheprovider", *sys.argv[1:]]))
