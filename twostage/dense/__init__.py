"""CLIP per patch, one file a readout; the file's name is the component's name."""
