"""CLIP: the model door, prompts and text features."""
