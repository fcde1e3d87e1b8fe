"""C kernels for the CPU, called through XLA's foreign function interface."""
