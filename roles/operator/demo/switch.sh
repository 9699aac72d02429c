#!/bin/sh
# Stands for switch-to-configuration on a host of the demonstration, which has a
# real Nix store but no init: it moves the link of the running system and lists the
# unit that failed, if this system has one.
set -eu
failing=
root=$NIXFLEET_ROOT
system=${0%/bin/switch-to-configuration}
system=/nix/store/${system##*/}

case ${1-} in
  check | boot) exit 0 ;;
  test | switch) ;;
  *) echo "usage: $0 check|test|switch|boot" >&2; exit 1 ;;
esac

mkdir -p "$root/run/nixfleet"
echo "activating $system" >&2
ln -sfn "$system" "$root/run/.current-system"
mv -T "$root/run/.current-system" "$root/run/current-system"
printf '%s' "${failing:+$failing
}" >"$root/run/nixfleet/failed-units"
if [ -n "$failing" ]; then
  echo "the following units failed: $failing" >&2
  exit 4
fi
