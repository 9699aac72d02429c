package command

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"
)

// completeWord is the last word of a command line that asks for completions
// instead of being run.
const completeWord = "--generate-bash-completion"

// completionScripts ask the executable itself, so that they are never those of
// another version. Where nixfleet has nothing to say, files are offered.
var completionScripts = map[string]string{
	"bash": `_nixfleet() {
  local cur=${COMP_WORDS[COMP_CWORD]}
  local words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ $cur == -* ]] && words+=("$cur")
  COMPREPLY=($(compgen -W "$("${words[@]}" ` + completeWord + ` 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _nixfleet nixfleet
`,
	"zsh": `#compdef nixfleet
_nixfleet() {
  local cur=${words[CURRENT]}
  local -a asked found
  asked=("${(@)words[1,CURRENT-1]}")
  [[ $cur == -* ]] && asked+=("$cur")
  found=(${(f)"$("${asked[@]}" ` + completeWord + ` 2>/dev/null)"})
  if (( $#found )); then
    compadd -- "${found[@]}"
  else
    _files
  fi
}
# As a file of fpath it is called at once.
if [[ $funcstack[1] == _nixfleet ]]; then
  _nixfleet "$@"
else
  compdef _nixfleet nixfleet
fi
`,
	"fish": `function __nixfleet_complete
  set -l asked (commandline -opc)
  set -l cur (commandline -ct)
  string match -q -- '-*' $cur; and set -a asked $cur
  command $asked ` + completeWord + ` 2>/dev/null
end
complete -c nixfleet -a '(__nixfleet_complete)'
`,
}

// completable returns a command line that can be handed to the library. Where "--"
// stands in one that asks for completions the library would run it: a person who
// presses the tab key after "nixfleet agent undo --" must not undo anything. As the
// last word it is the beginning of a flag; after an earlier one there are no completions.
func completable(args []string) (rest []string, ok bool) {
	last := len(args) - 1
	if args[last] != completeWord {
		return args, true
	}
	at := slices.Index(args, "--")
	if at == last-1 {
		return append(slices.Clone(args[:at]), completeWord), true
	}
	return args, at < 0
}

// Completion is `nixfleet completion`.
func Completion() *cli.Command {
	return &cli.Command{
		Name: "completion", ArgsUsage: "[bash|zsh|fish]",
		Usage: "print a script with which a shell completes commands and flags",
		Description: "Example:\n   source <(nixfleet completion)\n" +
			"   nixfleet completion bash > /usr/share/bash-completion/completions/nixfleet\n" +
			"   nixfleet completion zsh > ~/.zsh/functions/_nixfleet    # a directory of fpath, before compinit\n" +
			"   nixfleet completion fish > ~/.config/fish/completions/nixfleet.fish",
		Action: func(c *cli.Context) error {
			shell := cmp.Or(c.Args().First(), "bash")
			script, ok := completionScripts[shell]
			if !ok || c.NArg() > 1 {
				return Usage("nixfleet completion --help", "there is a script for bash, zsh and fish, not for %q", shell)
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}
