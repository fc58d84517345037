"""NanoNet: small, fast text models from a handful of labels."""
