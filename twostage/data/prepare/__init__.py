"""Benchmark data sets as their authors publish them -> label maps of contiguous ids, checked and counted."""
