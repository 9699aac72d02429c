#!/usr/bin/env bash
# Expected: LogRateLimitIntervalSec=0 in a unit lifts journald's rate limit for that unit, as
#   RateLimitIntervalSec=0 in journald.conf(5) lifts it for all: "to turn off any kind of rate
#   limiting, set either value to 0". systemd.exec(5) says that the unit's default is set there.
# Really: 0 counts as not set. With either of LogRateLimitIntervalSec and LogRateLimitBurst at 0, and
#   with both, journald goes on with its own limit and drops lines. A large LogRateLimitBurst does
#   lift it.
# Seen: systemd 252.39-1~deb12u2 (Debian 12) and 257.13-1~deb13u1 (Debian 13), 2026-11-28
# Output seen:
#   (how many lines get through by default depends on the free space)
#   systemd 252 (252.39-1~deb12u2)
#   default            32500 of 200000 lines
#   interval 0         32500 of 200000 lines
#   burst 0            32500 of 200000 lines
#   both 0             32500 of 200000 lines
#   burst 1000000000   200000 of 200000 lines
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

# lines NAME SETTING... prints how many lines of a unit with these settings are in the journal.
lines() {
  local name=$1 settings=()
  shift
  for s; do settings+=(-p "$s"); done
  on systemd-run -q --wait --unit="$name" "${settings[@]}" seq 200000
  on journalctl --sync
  on journalctl -q -o cat _SYSTEMD_UNIT="$name.service" | grep -cE '^[0-9]+$'
}
default=$(lines default)
interval=$(lines interval LogRateLimitIntervalSec=0)
burst=$(lines burst LogRateLimitBurst=0)
both=$(lines both LogRateLimitIntervalSec=0 LogRateLimitBurst=0)
large=$(lines large LogRateLimitBurst=1000000000)
printf '%-18s %s of 200000 lines\n' default "$default" 'interval 0' "$interval" 'burst 0' "$burst" \
  'both 0' "$both" 'burst 1000000000' "$large"
for n in "$default" "$interval" "$burst" "$both"; do
  ((n < 200000)) || { echo "journald behaves in another way now"; exit 1; }
done
((large == 200000)) || { echo "journald behaves in another way now"; exit 1; }
