"""The store device: sources, durable buffer, forwarder."""
