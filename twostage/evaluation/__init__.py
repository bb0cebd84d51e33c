"""Numbers about label maps and proposals."""
