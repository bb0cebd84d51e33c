"""The per-pixel baseline: a fully convolutional network whose pixels are compared with words."""
