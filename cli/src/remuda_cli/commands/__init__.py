"""One module per noun; each only parses, calls and prints."""
