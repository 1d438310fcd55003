"""Live migration by Remuda beside live migration by ``virsh migrate``."""
