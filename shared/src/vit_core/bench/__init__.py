"""Time, memory and multiply-adds of two models side by side; the speed of the loader."""
