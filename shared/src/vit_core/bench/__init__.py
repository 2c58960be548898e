"""Benchmarks: time, memory and multiply-adds of two models; speed of the data loader."""
