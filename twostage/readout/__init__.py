"""One readout of a CLIP image tower with orthogonal knobs; the published dense methods are presets of it."""
