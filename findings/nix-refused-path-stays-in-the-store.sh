#!/usr/bin/env bash
# Expected: what Nix refuses to import from a cache, because its bytes have another hash than the
#   signed one, is not in the store afterwards.
# Really: the unpacked directory stays under the store path, with the refused bytes in it. Only the
#   database knows that it is not valid: that a path exists proves nothing. Once the cache is
#   mended, the same command replaces it.
# Seen: nix 2.26.3 (nix-bin 2.26.3+dfsg-1 of Debian 13), 2026-11-28
# Output seen:
#   nix (Nix) 2.26.3
#   realise: error: hash mismatch importing path '/nix/store/5k6b…-example';
#   the file in the store: spoilt
#   check-validity: not valid
#   realise from the mended cache, the file in the store: intact
#
# Needs Debian 12 and root; .ci/nix.sh unpacks the Nix of Debian 13 into a temporary folder. Exit 1:
# it behaves in another way now. Exit 2: it could not be tried.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
bash "$here/../.ci/nix.sh" "$work/nix" >/dev/null 2>log || { cat log; exit 2; }
export PATH=$work/nix/bin:$PATH HOME=$work XDG_CACHE_HOME=$work/cache-of-user
nix --version

cat >example.nix <<'N'
derivation {
  name = "example"; system = builtins.currentSystem; PATH = "/bin";
  builder = "/bin/sh"; args = [ "-c" "mkdir $out; echo intact >$out/file" ];
}
N
nix-store --generate-binary-cache-key example-1 key pub
export NIX_REMOTE=$work/builder
path=$(nix-build --no-out-link example.nix 2>/dev/null)
nix copy --to "file://$work/cache?secret-key=$work/key&compression=none" "$path" 2>/dev/null
nar=$(echo cache/nar/*.nar)
sed -i 's/intact/spoilt/' "$nar"

export NIX_REMOTE=$work/host
realise() {
  nix-store --realise "$path" --option substituters "file://$work/cache" \
    --option trusted-public-keys "$(cat pub)" 2>said >/dev/null
}
realise && { echo "Nix took the spoilt bytes"; exit 1; }
echo "realise: $(grep -m 1 'hash mismatch' said)"
left=$(cat "host$path/file" || echo nothing)
echo "the file in the store: $left"
valid=valid
nix-store --check-validity "$path" 2>/dev/null || valid='not valid'
echo "check-validity: $valid"
sed -i 's/spoilt/intact/' "$nar"
realise
mended=$(cat "host$path/file")
echo "realise from the mended cache, the file in the store: $mended"
[[ $left == spoilt && $valid == 'not valid' && $mended == intact ]] ||
  { echo "Nix behaves in another way now"; exit 1; }
