"""The benchmark: a step of every page beside everyone else's, in one process, after a check that each is right."""
