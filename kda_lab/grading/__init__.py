"""Exercises: stubs, tests, verdicts, progress."""
