"""What goes to stderr while an operation runs."""
