"""The fleet: who the devices are, where they stand, and what the hub asks of them."""
