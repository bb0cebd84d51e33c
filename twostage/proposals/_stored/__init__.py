"""Masks as others store them: one reader a format, all with the same four words (see store.py)."""
