"""Layer 7: methods compared over data sets, label draws and seeds, each cell in its own process."""
