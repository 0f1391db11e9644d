"""Define recipes and read them."""
