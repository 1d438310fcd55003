"""What the image store costs: transfers beside a plain stream of bytes, and beside cp."""
