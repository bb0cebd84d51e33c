"""Weights that others released for the two-stage baseline: what a file is, and its names in this package."""
