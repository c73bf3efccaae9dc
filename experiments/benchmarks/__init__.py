"""What is measured, one module per section: CAPTION, FULL and SMOKE sizes, and measure(sizes)."""
