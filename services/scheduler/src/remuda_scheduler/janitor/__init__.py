"""SweepHost: what lies on a host and is needed by nobody, found, judged and removed with receipts."""
