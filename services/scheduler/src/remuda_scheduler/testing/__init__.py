"""What tests of the scheduler share: a cluster in one process, with a leader that can be killed."""
