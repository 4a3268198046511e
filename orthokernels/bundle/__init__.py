"""The bundle: one folder with everything that a study needs on a machine without PyTorch, checked byte by byte."""
