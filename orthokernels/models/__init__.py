"""Reference models, in plain PyTorch."""
