"""The embedded world: drawn scenes of twenty classes, endless, without a download, the same for a seed."""
