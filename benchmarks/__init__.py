"""Every number that the README quotes: one script each, run as ``python -m benchmarks.<name>``."""

import d2proj  # noqa: F401 - makes ``detectron2`` importable for the modules here
