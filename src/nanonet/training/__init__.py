"""Layer 5: the plan of a run, its optimizers, the loop, checkpoints, the choice of a student."""
