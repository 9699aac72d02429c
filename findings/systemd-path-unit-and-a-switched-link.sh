#!/usr/bin/env bash
# Expected: a path unit with PathChanged=/run/secrets/key starts its service when the file that this
#   path names becomes another one. Tools that renew secrets write a new directory and then rename
#   a link /run/secrets over the old link, so that all of them change at once.
# Really: the renamed link starts nothing, neither with PathChanged on the file below it nor with
#   PathChanged on the link. systemd does follow the new link from then on: the next write to
#   the new file is seen.
# Seen: systemd 252.39-1~deb12u2 (Debian 12) and 257.13-1~deb13u1 (Debian 13), 2026-11-28
# Output seen:
#   systemd 252 (252.39-1~deb12u2)
#   after a write to the file: started 1 times
#   after the link was switched: started 1 times
#   after a write to the new file: started 2 times
#   watching the link itself, after it was switched: started 2 times
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

on mkdir -p /run/secrets.d/1 /run/secrets.d/2 /run/secrets.d/3
on sh -c 'for i in 1 2 3; do echo $i >/run/secrets.d/$i/key; done; : >/run/started'
on ln -s /run/secrets.d/1 /run/secrets
switch() { on ln -s "/run/secrets.d/$1" /run/secrets.new && on mv -T /run/secrets.new /run/secrets; }
watch() { on systemd-run -q --unit="$1" --path-property="PathChanged=$2" sh -c 'echo >>/run/started'; }
failed=0
started() { # started WHEN WANTED
  sleep 2
  local got
  got=$(on cat /run/started | wc -l)
  echo "$1: started $got times"
  ((got == $2)) || failed=1
}
watch file /run/secrets/key
on sh -c 'echo again >>/run/secrets/key'
started 'after a write to the file' 1
switch 2
started 'after the link was switched' 1
on sh -c 'echo again >>/run/secrets/key'
started 'after a write to the new file' 2
on systemctl stop file.path
watch link /run/secrets
switch 3
started 'watching the link itself, after it was switched' 2
((failed == 0)) || { echo "systemd behaves in another way now"; exit 1; }
