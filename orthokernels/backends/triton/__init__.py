"""Triton kernels, a file per op. Under TRITON_INTERPRET=1 they run on the CPU, slowly, which is how tests run them."""
