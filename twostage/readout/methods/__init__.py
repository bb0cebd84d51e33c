"""The published methods: one family a file, its presets beside what is done around the reading."""
