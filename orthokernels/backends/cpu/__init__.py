"""The ops in native C++ (``csrc/cpu``), float32, for processors; the same bytes at any number of threads."""
