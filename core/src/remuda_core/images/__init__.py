"""Images as the store and the agents share them: chunks, manifests, and fetching."""
