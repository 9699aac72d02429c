# The job of every forge, `sh ci/release.sh`: build, sign and publish a release of the
# checked out commit; with --resign renew the signatures of the present one.
#
#   RELEASE_KEY  the private half of nixfleet.trust.ciReleaseKey; in base64 it is one
#                line, which every forge can mask in its logs
#   CACHE_KEY    that of a key in nixfleet.trust.cacheKeys (not for --resign)
#   COPY_TO      where closures go, for `nix copy --to` (not for --resign)
#   NIXFLEET     the executable, if not the one that flake.lock pins
set -eu
umask 077
keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT
trap 'exit 1' HUP INT TERM

case $RELEASE_KEY in
  LS0tLS1CRUdJT*) printf '%s' "$RELEASE_KEY" | base64 -d >"$keys/release.key" ;; # -----BEGIN
  *) printf '%s\n' "$RELEASE_KEY" >"$keys/release.key" ;;
esac
case " $* " in
  *" --resign "*) ;;
  *)
    printf '%s' "$CACHE_KEY" >"$keys/cache.key"
    set -- "$@" --copy-to "$COPY_TO" --cache-key "$keys/cache.key" \
      --revocations-attr fleet.revocations --bootstrap-nonces-attr fleet.bootstrapNonces
    ;;
esac
# What evaluates and builds the fleet does not inherit them.
unset RELEASE_KEY CACHE_KEY

if [ -n "${NIXFLEET-}" ]; then
  nixfleet() { "$NIXFLEET" "$@"; }
else
  nixfleet() { nix --extra-experimental-features 'nix-command flakes' run .#nixfleet -- "$@"; }
fi
nixfleet release "$@" --sign-key "$keys/release.key" --trust-file trust.json \
  --git-push origin:main --git-user-name nixfleet-ci --git-user-email nixfleet-ci@fleet.example.com
