"""Training runs, the one home of seeds and loops: what a race runs, and what is looked at on its way."""
