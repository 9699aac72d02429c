#!/usr/bin/env bash
# loaders.sh DIR: put newer systemd-boots than the machine's own into DIR, for real boots.
#
# Debian's next releases have them. They are fetched by apt with a state of its own and unpacked: nothing is installed.
# Where the mirror does not answer, DIR stays empty, which is said in one line.
set -euo pipefail
dir=$1
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$') || mirror=
[[ -n $mirror ]] || { echo "loaders.sh: no mirror of Debian is configured here"; exit 0; }
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$dir" "$state"/{lists/partial,archives/partial}
: >"$state/status"
for suite in trixie sid; do
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$state/sources.list"
  options=(-o Dir::State::status="$state/status" -o Dir::State::lists="$state/lists" -o Dir::Cache="$state"
           -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Acquire::Languages=none
           -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o APT::Sandbox::User=root)
  if (cd "$state" && apt-get "${options[@]}" -qq update && apt-get "${options[@]}" -qq download systemd-boot-efi) \
    >"$state/log" 2>&1; then
    dpkg-deb -x "$state"/systemd-boot-efi_*.deb "$state/$suite"
    rm "$state"/systemd-boot-efi_*.deb
    cp "$state/$suite/usr/lib/systemd/boot/efi/systemd-bootx64.efi" "$dir/$suite.efi"
  else
    echo "loaders.sh: $suite has no loader for us: $(tail -n 1 "$state/log")"
  fi
done
