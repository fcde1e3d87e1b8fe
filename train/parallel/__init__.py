"""Devices and processes. Only this package uses jit, pmap, meshes, donation and sharding."""
