"""The lab: races optimizers fairly on a task and says how sure it is."""
