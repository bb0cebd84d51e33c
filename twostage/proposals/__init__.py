"""Sources of masks, one file each; the file's name is the component's name."""
