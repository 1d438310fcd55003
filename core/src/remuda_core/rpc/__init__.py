"""How every service serves and calls gRPC: one chain, one error mapping, one way to pass deadlines."""
