from importlib.util import find_spec

LIBRARIES = ("timm", "torchvision", "transformers", "peft")
# `python -m tests.backbones` runs these tests in an environment of their own, where a missing library is an error
collect_ignore_glob = ["test_*.py"] if not find_spec("torchvision") else []
