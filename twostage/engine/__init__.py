"""Training without knowledge of what is trained: launch, loop, optimiser, checkpoints, events."""
