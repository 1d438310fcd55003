# After json.awk on an OpenStack network_data.json: one line per IPv4 network, "MAC ADDRESS NETMASK GATEWAY",
# a dash where there is none. Networks without a link (no MAC) go to the first interface.
END {
  for (n = 0; ("networks." n ".id") in v || ("networks." n ".type") in v; n++) {
    base = "networks." n "."
    if (v[base "type"] != "ipv4" || v[base "ip_address"] == "") continue
    mac = "-"
    for (l = 0; ("links." l ".id") in v; l++)
      if (v["links." l ".id"] == v[base "link"]) mac = tolower(v["links." l ".ethernet_mac_address"])
    address = v[base "ip_address"]; netmask = v[base "netmask"]
    if (split(address, part, "/") == 2) { address = part[1]; netmask = part[2] }
    gateway = v[base "gateway"]
    for (r = 0; gateway == "" && (base "routes." r ".network") in v; r++)
      if (v[base "routes." r ".network"] == "0.0.0.0") gateway = v[base "routes." r ".gateway"]
    print (mac == "" ? "-" : mac), address, (netmask == "" ? "255.255.255.0" : netmask), (gateway == "" ? "-" : gateway)
  }
}
