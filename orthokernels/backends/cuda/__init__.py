"""CUDA C++ kernels, compiled by CuPy on first use."""
