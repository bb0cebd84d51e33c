"""Data sets, vocabularies, image reading, transforms and the embedded world."""
