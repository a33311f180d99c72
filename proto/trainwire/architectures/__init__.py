"""Network architectures: one module each; importing this package alone does not load torch."""
