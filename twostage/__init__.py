"""Two-stage open-vocabulary semantic segmentation: propose masks, let CLIP name them, merge."""

__version__ = "0.1.0"
