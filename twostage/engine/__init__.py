"""A training loop that knows no segmentation, only tasks."""
