"""The user commands: train, evaluate, convert, curves, studies."""
