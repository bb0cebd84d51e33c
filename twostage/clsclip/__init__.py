"""ClsCLIP: a frozen CLIP whose class token is replaced by a word, and a small decoder that finds its pixels."""
