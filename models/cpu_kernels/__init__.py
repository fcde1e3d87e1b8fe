"""C kernels for CPUs. Other packages import only `models.cpu_kernels.ops`; README.md describes the rest."""
