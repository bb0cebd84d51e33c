"""Stage one's network: MaskFormer with a zero-shot class head."""
