"""Devices and processes: the only package that knows jit, pmap, meshes, donation and sharding."""
