"""Plain data in, one HTML file out."""
