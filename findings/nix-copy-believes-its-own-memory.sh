#!/usr/bin/env bash
# Expected: after `nix copy --to http://…` has ended with 0, the path is in that cache.
# Really: nix remembers for 30 days (narinfo-cache-positive-ttl) which paths a cache over http had,
#   those that it uploaded itself among them. Into a cache that was emptied since then it
#   uploads nothing, says "copying 0 paths" and ends with 0; the cache stays empty. With
#   --narinfo-cache-positive-ttl 0 it asks.
# Seen: nix 2.26.3 (nix-bin 2.26.3+dfsg-1 of Debian 13), 2026-11-28
# Output seen:
#   nix (Nix) 2.26.3
#   first copy: exit 0, narinfo files in the cache: 1
#   copy after the cache was emptied: exit 0, narinfo files in the cache: 0
#   the same with narinfo-cache-positive-ttl 0: exit 0, narinfo files in the cache: 1
#
# Also needs python3, for a cache that takes PUT on loopback.
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

cat >serve.py <<'P'
import http.server, os

class Cache(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_PUT(self):
        path = self.translate_path(self.path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass

os.chdir("cache")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cache)
with open("../port", "w") as f:
    f.write(str(server.server_port) + "\n")
server.serve_forever()
P
empty() { rm -rf cache/*; echo 'StoreDir: /nix/store' >cache/nix-cache-info; }
mkdir cache
empty
python3 serve.py &
server=$!
trap 'kill $server; chmod -R u+w "$work"; rm -rf "$work"' EXIT
for _ in {1..50}; do [[ -s port ]] && break; sleep 0.1; done

cat >example.nix <<'N'
derivation {
  name = "example"; system = builtins.currentSystem;
  builder = "/bin/sh"; args = [ "-c" "echo hello >$out" ];
}
N
export NIX_REMOTE=$work/store
nix-store --generate-binary-cache-key example-1 key pub
path=$(nix-build --no-out-link example.nix 2>/dev/null)
failed=0
copy() { # copy NAME WANTED FLAG...
  local name=$1 wanted=$2 code=0 files
  shift 2
  nix copy "$@" --to "http://127.0.0.1:$(cat port)?secret-key=$work/key" "$path" 2>/dev/null || code=$?
  files=$(find cache -name '*.narinfo' | wc -l)
  echo "$name: exit $code, narinfo files in the cache: $files"
  [[ $code == 0 && $files == "$wanted" ]] || failed=1
}
copy 'first copy' 1
empty
copy 'copy after the cache was emptied' 0
copy 'the same with narinfo-cache-positive-ttl 0' 1 --narinfo-cache-positive-ttl 0
((failed == 0)) || { echo "Nix behaves in another way now"; exit 1; }
