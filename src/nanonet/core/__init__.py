"""Layer 0: errors, registry, configuration, files. Standard library only."""
