"""How a race is run: plan, run, store, judge. Each file takes plain data and gives plain data."""
