"""The embedded world: drawn scenes of twenty classes, endless, without a download, identical for identical seeds."""
