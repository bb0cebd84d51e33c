"""The embedded world: drawn scenes of twenty classes, endless, without a download.

Identical seeds give identical scenes with one version of OpenCV; between versions (4.8 and 5.0 were compared)
a few pixels at the edges of things differ.
"""
