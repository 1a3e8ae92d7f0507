"""bitsandbytes' own operators, where that package is installed, as kernels."""
