"""What both APIs decide alike: arguments, options, schedules, storage, checkpoints, clipping, and averaged weights."""
