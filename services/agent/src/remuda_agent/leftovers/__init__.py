"""What lies on this host of Remuda, whether anybody needs it or not, and its removal on the leader's word."""
