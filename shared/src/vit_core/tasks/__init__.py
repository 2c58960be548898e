"""What differs between tasks: classification."""
