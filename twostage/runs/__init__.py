"""Whole runs from a configuration, one file each."""
