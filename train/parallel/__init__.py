"""Devices and processes. Only this package applies jit, pmap, meshes, donation and sharding to steps."""
