"""What goes to stdout: tables, descriptions, JSON, YAML."""
