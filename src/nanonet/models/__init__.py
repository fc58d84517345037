"""Layer 3: backbones, heads, parameter-efficient training, the cohort."""
