"""Layer 7: the demo on texts found on the machine itself."""
