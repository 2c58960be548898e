"""Training loop and state, optimizer, loss, precision, distributed processes, run folders, checkpoints, evaluation."""
