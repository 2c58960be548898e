"""Tasks: the task-specific parts of training (so far classification)."""
