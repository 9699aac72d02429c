#!/usr/bin/env bash
# nix.sh DIR makes a real Nix under DIR on a Debian 12 machine without touching
# the machine's own packages, /nix or /etc/nix. Debian 12's nix-bin is too old,
# so Debian 13's is unpacked beside the system and pointed at its own libraries.
#
# Afterwards DIR/bin holds nix, nix-store, nix-env, nix-build, nix-instantiate and
# the rest, DIR/etc/nix.conf their configuration. The last line on stdout is the
# shell assignment that tests want: eval "$(.ci/nix.sh DIR)" exports it.
# Running it again is quick and changes nothing. Needs root only for patchelf.
set -euo pipefail

release=trixie
recipe=5 # raise when this script makes something else than before

dir=${1:?usage: nix.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

finish() {
  "$dir/bin/nix" --version >&2
  printf 'export NIXFLEET_TEST_NIX=%q\n' "$dir"
  exit 0
}
[[ $(cat "$dir/recipe" 2>/dev/null) == "$recipe" ]] && finish

exec 9>"$dir/lock"
flock 9
[[ $(cat "$dir/recipe" 2>/dev/null) == "$recipe" ]] && finish

export DEBIAN_FRONTEND=noninteractive
if ! command -v patchelf >/dev/null; then
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends patchelf >&2
fi

# A private apt state: the machine's own mirrors, proxies and keys, but another
# release, own lists, and an empty dpkg status so that every dependency down to
# libc is downloaded instead of being taken for installed.
apt=$dir/apt
rm -rf "$apt" "$dir/root.new"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
: >"$apt/status"
. /etc/os-release
apt-get indextargets --format '$(CREATED_BY)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)|$(SIGNED_BY)' |
  while IFS='|' read -r kind suite uri component key; do
    [[ $kind == Packages && $suite == "$VERSION_CODENAME" && $component == main ]] || continue
    [[ $key == /* ]] && key="[signed-by=$key] " || key=
    printf 'deb %s%s %s main\n' "$key" "$uri" "$release"
  done | sort -u >"$apt/sources.list"
if [[ ! -s $apt/sources.list ]]; then
  echo "nix.sh: apt on this machine knows no main archive of $VERSION_CODENAME" >&2
  exit 1
fi
private=(-o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/parts"
  -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$apt/parts"
  -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status"
  -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3
  -o APT::Update::Post-Invoke-Success= -o Dir::Log="$apt")
apt-get "${private[@]}" -qq update >&2
apt-get "${private[@]}" -qq -y --no-install-recommends --download-only install nix-bin >&2

mkdir "$dir/root.new"
for deb in "$apt"/cache/archives/*.deb; do
  dpkg-deb -x "$deb" "$dir/root.new"
done
rm -rf "$dir/root"
mv "$dir/root.new" "$dir/root"

# Run through its own libc. ld.so --library-path would evaluate but not build:
# Nix starts itself again for builds, so the binary itself must be right.
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")
interpreter=$(patchelf --print-interpreter "$dir/root/usr/bin/nix")
loader=$(find "$dir/root/usr/lib" -name "${interpreter##*/}" | head -n 1)
patchelf --set-interpreter "$loader" "$dir/root/usr/bin/nix"
patchelf --force-rpath --set-rpath "$dir/root/usr/lib/$multiarch:$dir/root/usr/lib" "$dir/root/usr/bin/nix"

# Without NIX_REMOTE or --store Nix would create /nix on this machine, and nix-env
# would even with --store: the default is a store of its own here.
rm -rf "$dir/bin"
mkdir -p "$dir/bin" "$dir/etc"
for tool in "$dir"/root/usr/bin/nix*; do
  tool=${tool##*/}
  cat >"$dir/bin/$tool" <<WRAPPER
#!/usr/bin/env bash
export NIX_CONF_DIR=\${NIX_CONF_DIR:-$dir/etc} NIX_REMOTE=\${NIX_REMOTE:-$dir/scratch} NIX_BIN_DIR=$dir/bin
export NIX_STATE_DIR=\${NIX_STATE_DIR:-$dir/scratch/nix/var/nix}
exec -a $tool $dir/root/usr/bin/nix "\$@"
WRAPPER
  chmod 755 "$dir/bin/$tool"
done
cat >"$dir/etc/nix.conf" <<'CONF'
experimental-features = nix-command flakes
sandbox = false
build-users-group =
substituters =
sandbox-paths = /bin=/usr/bin /usr /lib=/usr/lib /lib64=/usr/lib64
CONF

rm -rf "$apt"
echo "$recipe" >"$dir/recipe"
finish
