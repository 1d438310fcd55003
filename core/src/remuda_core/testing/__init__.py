"""What tests of every service share: real processes, and bounded waits."""
