"""Stage one and CLIP's image tower as ONNX files, and the system that runs them."""
