"""Layer 6: running a bundle. No torch."""
