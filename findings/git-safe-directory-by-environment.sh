#!/usr/bin/env bash
# Expected: safe.directory=* given on git's command line (-c) or by GIT_CONFIG_COUNT holds for a
#   whole `git clone` of a local path: git-config(1) lists both beside the user's own file.
# Really: git starts upload-pack for the path and takes these variables from it, since they count
#   as those of one repository. upload-pack then refuses the repository of another user. A file
#   that GIT_CONFIG_GLOBAL names does reach it.
# Seen: git 1:2.39.5-0+deb12u3 (Debian 12), 2026-11-28
# Output seen:
#   log, GIT_CONFIG_COUNT: works
#   clone, GIT_CONFIG_COUNT: fatal: detected dubious ownership in repository at '/tmp/…/theirs/.git'
#   clone, -c: fatal: detected dubious ownership in repository at '/tmp/…/theirs/.git'
#   clone, GIT_CONFIG_GLOBAL: works
#
# Needs Debian 12, root (a repository of another user has to be made) and apt. Exit 1: it behaves
# in another way now. Exit 2: it could not be tried.
set -euo pipefail
version=1:2.39.5-0+deb12u3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"

{ apt-get update -qq && apt-get download -qq "git=$version" && dpkg -x git_*.deb tools; } >&2 || exit 2
export GIT_EXEC_PATH=$work/tools/usr/lib/git-core GIT_TEMPLATE_DIR= HOME=$work GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@localhost GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@localhost
PATH=$work/tools/usr/bin:$PATH
git --version

git init -q -b main theirs
git -C theirs commit -q --allow-empty -m first
chown -R 12345:12345 theirs
printf '[safe]\n\tdirectory = *\n' >everything

failed=0
try() { # try NAME WANTED COMMAND...
  local name=$1 wanted=$2 got
  shift 2
  if got=$("$@" 2>&1 >/dev/null); then got=works; fi
  got=$(head -n 1 <<<"$got")
  printf '%s: %s\n' "$name" "$got"
  [[ $got == $wanted ]] || failed=1
}
counted=(env GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory 'GIT_CONFIG_VALUE_0=*')
dubious='fatal: detected dubious ownership*'
try 'log, GIT_CONFIG_COUNT' works "${counted[@]}" git -C theirs log
try 'clone, GIT_CONFIG_COUNT' "$dubious" "${counted[@]}" git clone -q "$work/theirs" one
try 'clone, -c' "$dubious" git -c 'safe.directory=*' clone -q "$work/theirs" two
try 'clone, GIT_CONFIG_GLOBAL' works env GIT_CONFIG_GLOBAL="$work/everything" git clone -q "$work/theirs" three
((failed == 0)) || { echo "git behaves in another way now"; exit 1; }
