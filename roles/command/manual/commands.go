package manual

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// exits are the exit codes of every command.
const exits = `.SH EXIT STATUS
.TP
0
The work is done.
.TP
1
The work failed. The error names what failed, and a hint below it the next thing to type.
.TP
2
The command line is wrong. In \fBnixfleet release\fR also: a hook failed.
.TP
3
The release did not verify.
.PP
Some commands have more, which their options name.
`

// overview is nixfleet(1).
func overview(app *cli.App, version string, others []string) string {
	var b strings.Builder
	b.WriteString(header(app.Name, 1, version, app.Usage))
	b.WriteString(".SH SYNOPSIS\n.B nixfleet\n\\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]\n.SH COMMANDS\n")
	for _, c := range visible(app.Commands) {
		b.WriteString(".TP\n\\fB" + escaped("nixfleet-"+c.Name) + "\\fR(1)\n" + inline(c.Usage) + "\n")
	}
	b.WriteString(exits)
	b.WriteString(
		".SH ENVIRONMENT\nEvery option has a variable, which its description names. An empty variable counts as\n" +
			"not set. An option wins over its variable, and this over the configuration file.\n")
	b.WriteString(seeAlso(others))
	return b.String()
}

// commandPage is the page of one word of the command line with all that stands below it.
func commandPage(c *cli.Command, version string) string {
	var b strings.Builder
	b.WriteString(header("nixfleet-"+c.Name, 1, version, c.Usage))
	b.WriteString(".SH SYNOPSIS\n")
	leaves(c, "nixfleet "+c.Name, func(path string, leaf *cli.Command) {
		b.WriteString("\\fB" + escaped(path) + "\\fR [\\fIOPTIONS\\fR] \\fI" + escaped(leaf.ArgsUsage) + "\\fR\n.br\n")
	})
	if len(visible(c.Subcommands)) == 0 {
		b.WriteString(".SH DESCRIPTION\n" + description(c.Description) + options(c, ".SH OPTIONS\n"))
	} else {
		b.WriteString(".SH DESCRIPTION\n" + description(c.Description) + ".SH COMMANDS\n")
		leaves(c, "nixfleet "+c.Name, func(path string, leaf *cli.Command) {
			b.WriteString(".SS " + quotedTitle(path) + "\n" + inline(leaf.Usage) + "\n.PP\n" +
				description(leaf.Description) + options(leaf, ""))
		})
	}
	b.WriteString(exits + seeAlso([]string{"nixfleet(1)"}))
	return b.String()
}

// leaves visits the commands that can be run.
func leaves(c *cli.Command, path string, visit func(path string, leaf *cli.Command)) {
	if len(c.Subcommands) == 0 {
		visit(path, c)
	}
	for _, sub := range visible(c.Subcommands) {
		leaves(sub, path+" "+sub.Name, visit)
	}
}

func visible(commands []*cli.Command) []*cli.Command {
	return slices.DeleteFunc(slices.Clone(commands), func(c *cli.Command) bool { return c.Hidden })
}

// description is the text of --help in roff. Its examples are indented.
func description(text string) string {
	var b strings.Builder
	var code []string
	for line := range strings.SplitSeq(strings.TrimSpace(text)+"\n", "\n") {
		if strings.HasPrefix(line, "  ") {
			code = append(code, strings.TrimPrefix(line, "   "))
			continue
		}
		if len(code) > 0 {
			b.WriteString(block(code))
			code = nil
		}
		if line == "" {
			b.WriteString(".PP\n")
			continue
		}
		b.WriteString(inline(line) + "\n")
	}
	return b.String()
}

// options lists the flags of a command below a heading.
func options(c *cli.Command, heading string) string {
	var b strings.Builder
	for _, f := range c.VisibleFlags() {
		b.WriteString(option(f))
	}
	if b.Len() == 0 {
		return ""
	}
	return heading + b.String()
}

func option(f cli.Flag) string {
	var names []string
	for _, name := range f.Names() {
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		names = append(names, `\fB`+escaped(dashes+name)+`\fR`)
	}
	value, usage := explained(f)
	if value != "" {
		value = ` \fI` + escaped(value) + `\fR`
	}
	return fmt.Sprintf(".TP\n%s%s\n%s\n", strings.Join(names, ", "), value, usage)
}

// explained is what a flag's value is called, and what its help, default and variable are.
func explained(f cli.Flag) (value, usage string) {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return "", ""
	}
	usage = doc.GetUsage()
	if parts := strings.SplitN(usage, "`", 3); len(parts) == 3 {
		value, usage = parts[1], parts[0]+parts[1]+parts[2]
	} else if doc.TakesValue() {
		value = "VALUE"
	}
	var more []string
	if text := doc.GetDefaultText(); doc.TakesValue() && text != "" && text != `""` {
		more = append(more, "default: "+text)
	}
	if list := doc.GetEnvVars(); len(list) > 0 {
		more = append(more, "variable: "+strings.Join(list, ", "))
	}
	usage = inline(usage)
	if len(more) > 0 {
		usage += escaped(" (" + strings.Join(more, "; ") + ")")
	}
	return value, usage
}

func seeAlso(pages []string) string {
	if len(pages) == 0 {
		return ""
	}
	return ".SH SEE ALSO\n" + escaped(strings.Join(pages, ", ")) + "\n"
}

// configuration is nixfleet-config(5): each flag that may stand in the operator's configuration file.
func configuration(app *cli.App, version string, typed []string) string {
	flags, users := map[string]cli.Flag{}, map[string][]string{}
	for _, top := range visible(app.Commands) {
		leaves(top, "nixfleet "+top.Name, func(path string, leaf *cli.Command) {
			if !slices.ContainsFunc(leaf.Flags, readsFile) {
				return
			}
			for _, f := range leaf.VisibleFlags() {
				name := f.Names()[0]
				if slices.Contains(typed, name) {
					continue
				}
				flags[name] = f
				users[name] = append(users[name], path)
			}
		})
	}
	var b strings.Builder
	b.WriteString(header("nixfleet-config", 5, version, "the operator's configuration file"))
	b.WriteString(body(configurationText))
	b.WriteString(".SH KEYS\n")
	for _, name := range sorted(flags) {
		value, _ := explained(flags[name])
		if value == "" {
			value = "true or false"
		}
		usage := flags[name].(cli.DocGenerationFlag).GetUsage()
		b.WriteString(".TP\n\\fB" + escaped(strings.ReplaceAll(name, "-", "_")) + "\\fR = \\fI" + escaped(value) +
			"\\fR\n" + inline(strings.ReplaceAll(usage, "`", "")) + "\n.br\n" +
			escaped("for "+strings.Join(users[name], ", ")) + "\n")
	}
	b.WriteString(seeAlso([]string{"nixfleet(1)", "nixfleet-config(1)"}))
	return b.String()
}

// readsFile says whether a flag is the one that names the operator's configuration file.
func readsFile(f cli.Flag) bool {
	doc, ok := f.(cli.DocGenerationFlag)
	return ok && slices.Contains(doc.GetEnvVars(), "NIXFLEET_CONFIG")
}

const configurationText = `## Description
The file is TOML: config.toml in the directory nixfleet of the user's configuration directory, or the file that
` + "`--config`" + ` or NIXFLEET_CONFIG names. It must be private (mode 0600). Its keys are the names of options, with _ for -.
An option that may be repeated takes a list. A value that begins with ~/ begins with the home directory.

An option wins over its variable, and the variable over the file. ` + "`nixfleet config show`" + ` prints where each setting of
the connection comes from.

## Example

    cp_url = "https://cp.example.com:8080"
    ca_cert = "~/fleet/fleet-root.cert.pem"
    client_cert = "~/fleet/operator.pem"
    client_key = "~/fleet/operator.key"
`
