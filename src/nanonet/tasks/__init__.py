"""Layer 1: what a task encodes, decodes and measures. No torch."""
