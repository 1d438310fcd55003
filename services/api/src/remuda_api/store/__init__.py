"""Records in etcd, and what clients see of them: one codec per noun, and the caches that hold them."""
