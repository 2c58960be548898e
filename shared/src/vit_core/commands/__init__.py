"""What users run: train, evaluate, curves, studies."""
