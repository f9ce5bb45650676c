"""Cases and mutants, one module an exercise file (see `solutions/AUTHORING.md`)."""
