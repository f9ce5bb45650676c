"""Hopper without a Hopper: layouts, fragments, and a simulator of warps, barriers and TMA."""
