"""What CleanAI costs, and what it makes of whole model libraries; run as ``python -m benchmarks.NAME``."""
