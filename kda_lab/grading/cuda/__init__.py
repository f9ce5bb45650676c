"""CUDA exercises on a machine without a GPU: device code compiled for the host, and watched as it runs."""
