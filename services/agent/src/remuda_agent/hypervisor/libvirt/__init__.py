"""QEMU guests through libvirt."""

from remuda_agent.hypervisor.libvirt.driver import LibvirtHypervisor, open_libvirt

__all__ = ["LibvirtHypervisor", "open_libvirt"]
