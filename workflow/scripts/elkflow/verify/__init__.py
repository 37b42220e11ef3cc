"""Independent checks of finished results."""
