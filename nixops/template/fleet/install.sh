# Installs a host of the fleet on a machine that answers by ssh, whatever runs there now:
#
#   sh install.sh web-01 root@192.0.2.7
#
# The disk that hosts/NAME.nix names is ERASED. The machine gets the key and the token that
# `nixfleet host prepare` made, and the control plane gets its own keys as well. What
# follows the address is handed on to nixos-anywhere.
#
#   IDENTITY        opens secrets/*.age (~/.ssh/id_ed25519)
#   NIXOS_ANYWHERE  the installer (nixos-anywhere)
set -eu
if [ $# -lt 2 ]; then
  echo "usage: sh install.sh NAME root@ADDRESS [options of nixos-anywhere]" >&2
  exit 2
fi
host=$1 address=$2
shift 2
identity=${IDENTITY:-$HOME/.ssh/id_ed25519}
cd "$(dirname "$0")"
if [ ! -e "secrets/$host/ssh_host_ed25519_key.age" ]; then
  echo "secrets/$host has no key: prepare the host first, as README.md says" >&2
  exit 1
fi

umask 077
extra=$(mktemp -d)
trap 'rm -rf "$extra"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$extra/etc/ssh" "$extra/var/lib/nixfleet"
chmod 755 "$extra" "$extra/etc" "$extra/etc/ssh" "$extra/var" "$extra/var/lib"
age -d -i "$identity" "secrets/$host/ssh_host_ed25519_key.age" >"$extra/etc/ssh/ssh_host_ed25519_key"
cp "secrets/$host/ssh_host_ed25519_key.pub" "$extra/etc/ssh/"
cp "secrets/$host/bootstrap-token.age" "$extra/var/lib/nixfleet/"
if [ "$host" = control-plane ]; then
  keys=$extra/var/lib/nixfleet-keys
  mkdir "$keys"
  for f in server.key.pem issuing-ca.key.pem; do
    age -d -i "$identity" "secrets/$f.age" >"$keys/$f"
  done
  cp secrets/server.cert.pem secrets/client-ca.pem secrets/issuing-ca.cert.pem "$keys/"
fi
"${NIXOS_ANYWHERE:-nixos-anywhere}" --extra-files "$extra" --flake ".#$host" "$@" "$address"
