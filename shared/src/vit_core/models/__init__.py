"""What the papers' models share: attention, dropout, sizes, weights of timm and of the originals."""
