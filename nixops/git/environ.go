package git

import (
	"slices"
	"strings"
)

// repositoryVariables name a repository, or a part of one, or change what a path means in it. git sets most of them for
// every hook that it starts, and a git that the hook starts obeys them rather than the directory that it is given:
// with GIT_DIR, a release that someone makes in a hook would go into the repository of the hook.
//
// The first group is the list that `git rev-parse --local-env-vars` prints, without GIT_CONFIG_PARAMETERS and
// GIT_CONFIG_COUNT, by which CI systems pass on tokens.
var repositoryVariables = []string{
	"GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_CONFIG", "GIT_DIR", "GIT_GRAFT_FILE",
	"GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_NO_REPLACE_OBJECTS",
	"GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_REPLACE_REF_BASE", "GIT_SHALLOW_FILE", "GIT_WORK_TREE",

	"GIT_NAMESPACE",           // a part of the repository's refs
	"GIT_QUARANTINE_PATH",     // where receive-pack keeps the objects of a push; with it git refuses to change refs
	"GIT_CEILING_DIRECTORIES", // hides a repository from git, but not from Nix
	"GIT_ATTR_SOURCE",         // a tree of the other repository
	"GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS",
}

// Environ returns the environment of a process without the variables that name a repository. It keeps what git needs to
// authenticate: HOME, SSH_AUTH_SOCK, GIT_SSH and GIT_SSH_COMMAND, GIT_ASKPASS, proxies, and configuration in variables.
// It is for every program that works in a directory which the caller names: git itself, Nix, which runs git to read a
// flake, and hooks.
func Environ(environ []string) []string {
	kept := make([]string, 0, len(environ))
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if !slices.Contains(repositoryVariables, name) {
			kept = append(kept, variable)
		}
	}
	return kept
}
