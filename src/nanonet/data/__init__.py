"""Layer 2: reading, checking, splitting and batching texts."""
