"""The NumPy front: optimizers for dicts of arrays, and minibatches. Not one formula lives here."""
