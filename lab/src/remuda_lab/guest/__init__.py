"""A small bootable guest of the project's own, made from Debian packages without root and without mounting
anything.
"""

from remuda_lab.guest.build import GuestImage, cache_directory, ensure_guest_image
from remuda_lab.guest.config_drive import ConfigDrive, Nic, write_config_drive

__all__ = ["ConfigDrive", "GuestImage", "Nic", "cache_directory", "ensure_guest_image", "write_config_drive"]
