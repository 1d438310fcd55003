"""A whole Remuda cluster on one machine, each host a set of namespaces with its own libvirtd."""
