"""`reproduce`: train, evaluate and explain every installed paper, and compare its claims with measurements."""
