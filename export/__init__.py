"""Graphs and bundles for machines without PyTorch. Nothing is exported yet."""
