#!/usr/bin/env bash
# Expected: a timer of `systemd-run --on-active=120` elapses 120 s after it was started, whatever
#   happens to systemd meanwhile: systemd.timer(5) says "relative to the moment the timer unit
#   itself is activated".
# Really: a timer that waits starts its countdown anew at every `systemctl daemon-reload`, so that
#   it does not elapse at all where something reloads systemd every minute. OnBootSec keeps its
#   moment.
# Seen: systemd 252.39-1~deb12u2 (Debian 12) and 257.13-1~deb13u1 (Debian 13), 2026-11-28
# Output seen:
#   systemd 252 (252.39-1~deb12u2)
#   OnActiveSec: the moment moved by 4 s within 4 s and a daemon-reload
#   OnBootSec: the moment moved by 0 s within 4 s and a daemon-reload
#
# Needs Debian 12, root, and apt: debootstrap makes a machine in a temporary folder, which boots in
# systemd-nspawn. Exit 1: it behaves in another way now. Exit 2: it could not be tried.
set -euo pipefail
work=$(mktemp -d) leader= nspawn=
stop() {
  [[ -z $leader ]] || kill -KILL "$leader" || true
  [[ -z $nspawn ]] || wait "$nspawn" || true
  rm -rf "$work"
}
trap stop EXIT

{
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends debootstrap systemd-container procps
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm "$work/root"
} >"$work/log" 2>&1 || { tail "$work/log"; exit 2; }
systemd-nspawn -q -D "$work/root" --volatile=overlay --machine="finding-$$" --register=no --keep-unit \
  --private-network --console=read-only -b >"$work/console" 2>&1 &
nspawn=$!
on() { nsenter -t "$leader" -m -p -i -u -n -C "$@"; }
for _ in {1..150}; do
  sleep 0.2
  leader=$(pgrep -P "$nspawn" | head -n 1 || true)
  [[ -n $leader && $(on systemctl is-system-running 2>/dev/null || true) =~ running|degraded ]] && break
done
on systemctl --version | head -n 1 || exit 2

on systemd-run -q --unit=active --on-active=120 true
on systemd-run -q --unit=boot --on-boot=1h true
# moment prints when a timer elapses, in seconds of the monotonic clock.
moment() {
  on busctl get-property org.freedesktop.systemd1 "/org/freedesktop/systemd1/unit/$1_2etimer" \
    org.freedesktop.systemd1.Timer NextElapseUSecMonotonic | awk '{print int($2 / 1000000)}'
}
active=$(moment active) boot=$(moment boot)
sleep 4
on systemctl daemon-reload
active=$(($(moment active) - active)) boot=$(($(moment boot) - boot))
echo "OnActiveSec: the moment moved by $active s within 4 s and a daemon-reload"
echo "OnBootSec: the moment moved by $boot s within 4 s and a daemon-reload"
((active >= 3 && boot == 0)) || { echo "systemd behaves in another way now"; exit 1; }
