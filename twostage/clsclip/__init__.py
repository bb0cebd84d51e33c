"""ClsCLIP: a frozen CLIP with a word in place of its class token, and a decoder of the word's pixels."""
