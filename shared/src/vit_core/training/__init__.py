"""Training: the loop and its state, optimiser, loss, precision, processes, run folders, checkpoints, evaluation."""
