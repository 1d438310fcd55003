"""One host: libvirt domains, disks, config drives, migration jobs."""
