"""The public gateway: identity, validation, admission, reads and watches."""
