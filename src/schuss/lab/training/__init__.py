"""Training runs, the one home of seeds and loops: what a race runs, and what is measured on its way."""
