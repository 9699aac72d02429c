#!/bin/sh
# A model of switch-to-configuration for hosts without an init: the order of its
# steps, its lock, its exit codes and the links it moves, but no units. What it
# does is read from model/ of its closure; what it did is appended to
# /run/nixfleet/switched of its host, which NIXFLEET_ROOT names.
root=${NIXFLEET_ROOT-}
self=${0%/bin/switch-to-configuration}
top=/nix/store/${self##*/}
knob() { cat "$self/model/$1" 2>/dev/null; }

case ${1-} in
  switch | boot | test) ;;
  check) [ -z "$(knob no-check)" ] || { echo "unknown action check" >&2; exit 1; } ;;
  *)
    echo "Usage: $0 [switch|boot|test|dry-activate$([ -n "$(knob no-check)" ] || echo '|check')]" >&2
    exit 1
    ;;
esac

mkdir -p "$root/run/nixos" "$root/run/nixfleet"
exec 9>>"$root/run/nixos/switch-to-configuration.lock"
flock -n 9 || { echo "Could not acquire lock" >&2; exit 11; }

if [ "$1" = check ] || [ "${NIXOS_NO_CHECK-}" != 1 ]; then
  check=$(knob check-exit)
  [ -z "$check" ] || { echo "Pre-switch checks failed" >&2; exit 1; }
  [ "$1" != check ] || exit 0
fi

if [ "$1" = boot ] || [ "$1" = switch ]; then
  code=$(knob boot-exit)
  [ -z "$code" ] || { echo "Failed to install bootloader" >&2; exit "$code"; }
  # As systemd-boot's installer: the entry first, then the default in one step.
  mkdir -p "$root/boot/loader/entries"
  entry=nixos-${self##*/}.conf
  echo "options init=$top/init loglevel=4" >"$root/boot/loader/entries/$entry"
  echo "default $entry" >"$root/boot/loader/loader.conf.new"
  mv "$root/boot/loader/loader.conf.new" "$root/boot/loader/loader.conf"
  [ "$1" != boot ] || { echo "$1 $top" >>"$root/run/nixfleet/switched"; exit 0; }
fi

code=$(knob exit)
case $code in
  1 | 11 | 100) echo "exit $code as asked" >&2; exit "$code" ;;
esac

echo "stopping the following units: model.service" >&2
echo model.service >"$root/run/nixos/start-list"
seconds=$(knob seconds)
[ -z "$seconds" ] || sleep "$seconds"
echo "activating the configuration..." >&2
ln -sfn "$top" "$root/run/.current-system"
mv -T "$root/run/.current-system" "$root/run/current-system"
echo "$1 $top" >>"$root/run/nixfleet/switched"
[ "$code" != 101 ] || { echo "panicked" >&2; exit 101; }
rm -f "$root/run/nixos/start-list"
knob failed-units >"$root/run/nixfleet/failed-units"
knob restarts >"$root/run/nixfleet/restarts"
[ -n "$code" ] || [ ! -s "$root/run/nixfleet/failed-units" ] || code=4
exit "${code:-0}"
