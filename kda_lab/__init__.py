"""KDA Lab: Kimi Delta Attention, from a matrix that remembers to Hopper kernels."""

from kda_lab.ops import backends, chunk_kda, fused_recurrent_kda

__all__ = ["backends", "chunk_kda", "fused_recurrent_kda"]
__version__ = "0.1.0"
