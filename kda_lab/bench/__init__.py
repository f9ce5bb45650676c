"""Measuring: correctness on a GPU, time on GPU and CPU, and the ledger that keeps what was measured."""
