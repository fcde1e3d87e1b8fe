"""C kernels for CPUs. The other packages import `models.cpu_kernels.ops` alone; README.md describes the rest."""
