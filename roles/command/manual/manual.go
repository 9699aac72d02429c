// Package manual makes the manual of the executable, in roff, out of the command tree and of pages in Markdown.
//
// It promises that every command and option which --help shows has its place in section 1, that no text in it is a
// request of roff, and that the same executable makes the same bytes: there is no date in a page.
package manual

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
)

// Page is a page of the manual that is written in Markdown. Its first heading says what it is about.
type Page struct {
	Name    string
	Section int
	Text    string
}

// Pages makes the whole manual: file names, such as nixfleet.1, and what they hold. The options typed are those that
// the configuration file cannot set.
func Pages(app *cli.App, written []Page, typed []string) map[string]string {
	version, _, _ := strings.Cut(app.Version, " ")
	others := []string{"nixfleet-config(5)"}
	pages := map[string]string{"nixfleet-config.5": configuration(app, version, typed)}
	for _, p := range written {
		title, _, _ := strings.Cut(strings.TrimPrefix(p.Text, "# "), "\n")
		pages[fmt.Sprintf("%s.%d", p.Name, p.Section)] = header(p.Name, p.Section, version, title) +
			".SH DESCRIPTION\n" + body(p.Text) + seeAlso([]string{"nixfleet(1)"})
		others = append(others, fmt.Sprintf("%s(%d)", p.Name, p.Section))
	}
	pages["nixfleet.1"] = overview(app, version, others)
	for _, c := range visible(app.Commands) {
		pages["nixfleet-"+c.Name+".1"] = commandPage(c, version)
	}
	return pages
}

// Command is `nixfleet man`.
func Command(written []Page, typed []string) *cli.Command {
	return &cli.Command{
		Name: "man", ArgsUsage: "[PAGE]", Usage: "show a page of the manual, or write all of them into a directory",
		Description: "PAGE is a command (host), or a page with or without its section (formats, nixfleet-config.5).\n" +
			"Into a pipe it is printed as roff.\n\n" +
			"Example:\n   nixfleet man host\n   nixfleet man config.5\n" +
			"   nixfleet man --out ~/.local/share/man    # then: man nixfleet-host",
		Flags: command.Variables("NIXFLEET_MAN",
			&cli.StringFlag{Name: "out", Usage: "write all pages into `DIR`/man1, man5 and man7"}),
		Action: func(c *cli.Context) error {
			pages := Pages(c.App, written, typed)
			if dir := c.String("out"); dir != "" && c.NArg() == 0 {
				return write(dir, pages)
			}
			if c.NArg() > 1 || c.String("out") != "" {
				return command.Usage("nixfleet man --help", "man takes one page, or --out alone")
			}
			file, ok := find(pages, c.Args().First())
			if !ok {
				return command.Usage("nixfleet man", "there is no page %q", c.Args().First())
			}
			if command.ToTerminal(c) {
				return show(c.Context, file, pages[file])
			}
			_, err := fmt.Fprint(c.App.Writer, pages[file])
			return err
		},
	}
}

// find returns the file of a page that somebody names. Of two sections the lower one counts.
func find(pages map[string]string, name string) (file string, ok bool) {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "nixfleet"), "-")
	for _, file := range sorted(pages) {
		full := strings.TrimPrefix(strings.TrimPrefix(file, "nixfleet"), "-")
		bare := strings.TrimSuffix(full, filepath.Ext(full))
		if name == full || name == bare {
			return file, true
		}
	}
	return "", false
}

func write(dir string, pages map[string]string) error {
	for _, file := range sorted(pages) {
		sub := filepath.Join(dir, "man"+strings.TrimPrefix(filepath.Ext(file), "."))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return fmt.Errorf("write the manual: %w", err)
		}
		if err := os.WriteFile(filepath.Join(sub, file), []byte(pages[file]), 0o644); err != nil {
			return fmt.Errorf("write the manual: %w", err)
		}
	}
	return nil
}

// show lets man show a page on the terminal of this process.
func show(ctx context.Context, file, text string) error {
	dir, err := os.MkdirTemp("", "nixfleet-man-")
	if err != nil {
		return fmt.Errorf("show the manual: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, file)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("show the manual: %w", err)
	}
	man := exec.CommandContext(ctx, "man", path)
	man.Stdin, man.Stdout, man.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := man.Run(); errors.Is(err, exec.ErrNotFound) {
		return command.Hinted(errors.New("man is not installed here"), "nixfleet --help says the same, a command at a time")
	} else if err != nil {
		return fmt.Errorf("show the manual: %w", err)
	}
	return nil
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
