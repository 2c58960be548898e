"""QAViT."""
