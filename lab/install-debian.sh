#!/bin/bash
# Installs what the lab needs from Debian 12's archive. Run it as root, as often as you like: what is there is
# left alone. Services that packages would start or enable (libvirtd, etcd, prometheus) are kept off: the lab runs its own.
set -euo pipefail

packages=(
  # the services of the mesh
  etcd-server etcd-client prometheus
  # hosts and guests
  libvirt-daemon libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
  qemu-system-x86 qemu-utils iproute2 iptables procps util-linux gnutls-bin
  # building the guest image
  busybox-static cpio dosfstools e2fsprogs kmod mtools syslinux syslinux-common
  # building libvirt-python, and the workspace's environment
  ca-certificates gcc libvirt-dev pkg-config python3-dev python3-venv
)
# What the guest is made of is downloaded, never installed; apt must know these.
guest_packages=(linux-image-cloud-amd64 qemu-guest-agent)

say() { echo "install-debian: $*"; }
fail() { echo "install-debian: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "packages are installed by root only: run it as root (sudo $0)"
[ -r /etc/os-release ] || fail "there is no /etc/os-release: this is not Debian; install the packages by hand: ${packages[*]}"
# shellcheck source=/dev/null
. /etc/os-release
case " ${ID:-} ${ID_LIKE:-} " in
  *" debian "*) ;;
  *) fail "this is ${PRETTY_NAME:-not Debian}; install the counterparts of these packages by hand: ${packages[*]}" ;;
esac
[ "$(dpkg --print-architecture)" = amd64 ] || fail "the guest is built for amd64, this is $(dpkg --print-architecture)"
command -v apt-get >/dev/null || fail "apt-get is missing: install the packages by hand: ${packages[*]}"

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
unknown=()
for package in "${guest_packages[@]}"; do apt-cache show "$package" >/dev/null 2>&1 || unknown+=("$package"); done

if [ ${#missing[@]} = 0 ] && [ ${#unknown[@]} = 0 ]; then
  say "everything is installed (${#packages[@]} packages)"
  exit 0
fi

export DEBIAN_FRONTEND=noninteractive
say "reading the archive's lists (apt-get update)"
apt-get update -qq || fail "apt-get update failed, its words are above: repair the network or /etc/apt/sources.list, then run this again"
for package in "${guest_packages[@]}"; do
  apt-cache show "$package" >/dev/null 2>&1 || fail "the archive offers no $package: add Debian's main component to /etc/apt/sources.list, then run this again"
done
[ ${#missing[@]} = 0 ] && { say "everything is installed, the lists are fresh"; exit 0; }

# invoke-rc.d asks this before it starts anything; it is removed again however we end.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi

say "installing: ${missing[*]}"
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/var/log/remuda-install.log 2>&1 || {
  tail -n 20 /var/log/remuda-install.log >&2
  fail "apt-get install failed, the end of /var/log/remuda-install.log is above: repair what it names, then run this again"
}

# The policy keeps units from being started, not from being enabled for the next boot.
if command -v systemctl >/dev/null; then
  for package in "${missing[@]}"; do
    units=$(dpkg -L "$package" | sed -n 's,^\(/usr\)\?/lib/systemd/system/\([^/@]*\.\(service\|socket\|timer\)\)$,\2,p')
    for unit in $units; do
      [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = enabled ] || continue
      say "not wanted at boot: $unit"
      systemctl --no-reload disable "$unit" >/dev/null 2>&1 || fail "could not disable $unit: do it by hand (systemctl disable $unit)"
    done
  done
fi
say "done"
