package operator

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// completeWord is the last word of a command line that asks for completions
// instead of being run.
const completeWord = "--generate-bash-completion"

// completionScript asks the executable itself, so that it never says what another
// version knows. Where nixfleet has nothing to say, files are offered.
const completionScript = `_nixfleet() {
  local cur=${COMP_WORDS[COMP_CWORD]}
  local words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ $cur == -* ]] && words+=("$cur")
  COMPREPLY=($(compgen -W "$("${words[@]}" ` + completeWord + ` 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _nixfleet nixfleet
`

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print what bash needs to complete commands and flags",
		Description: "Example:\n   source <(nixfleet completion)\n   nixfleet completion > /usr/share/bash-completion/completions/nixfleet",
		Action: func(c *cli.Context) error {
			_, err := fmt.Fprint(c.App.Writer, completionScript)
			return err
		},
	}
}
