"""The ops in plain PyTorch, on any device and in float64 too: what a kernel is held against, and what runs without."""
