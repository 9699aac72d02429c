package nixops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Declared is what Declare reads from a flake.
type Declared struct {
	Values [][]byte    // the JSON of each attribute, in the order of the question
	Hosts  []FlakeHost // sorted by name
}

// Declare returns the values of attributes of a flake, and the hosts whose systems it declares. It evaluates the flake
// once for all of them. If the attributes lie below packages or legacyPackages, or if Nix is too old to be asked for
// all outputs, Declare evaluates again for what is missing, as Eval and ListHosts do.
func (c CI) Declare(ctx context.Context, flake string, attrs []string) (Declared, error) {
	out, err := c.command(c.EvalTimeout, 30*time.Minute, "nix", "eval", "--json", flake+"#.", "--apply",
		declaration(attrs)).run(ctx)
	if failed, ok := errors.AsType[*commandError](err); ok && strings.Contains(failed.stderr,
		"does not provide attribute") {
		return c.declareSeparately(ctx, flake, attrs)
	}
	if err != nil {
		return Declared{}, fmt.Errorf("evaluate %s: %w", flake, err)
	}
	var answer struct {
		Attributes []jsontext.Value `json:"attributes"`
		NixOS      []string         `json:"nixos"`
		Darwin     []string         `json:"darwin"`
	}
	// A program that answers in another form did not understand the question.
	if json.Unmarshal(out, &answer) != nil || len(answer.Attributes) != len(attrs) {
		return c.declareSeparately(ctx, flake, attrs)
	}
	d := Declared{Hosts: flakeHosts(answer.NixOS, answer.Darwin), Values: make([][]byte, len(attrs))}
	for i, raw := range answer.Attributes {
		var found struct {
			Value jsontext.Value `json:"value"`
		}
		if err := json.Unmarshal(raw, &found); err != nil {
			return Declared{}, fmt.Errorf("evaluate %s#%s: %w", flake, attrs[i], err)
		}
		if d.Values[i] = found.Value; found.Value != nil {
			continue
		}
		if d.Values[i], err = c.Eval(ctx, flake, attrs[i]); err != nil {
			return Declared{}, err
		}
	}
	return d, nil
}

// declareSeparately evaluates the flake for each attribute and for each kind of host.
func (c CI) declareSeparately(ctx context.Context, flake string, attrs []string) (Declared, error) {
	var d Declared
	for _, attr := range attrs {
		value, err := c.Eval(ctx, flake, attr)
		if err != nil {
			return Declared{}, err
		}
		d.Values = append(d.Values, value)
	}
	var err error
	d.Hosts, err = c.ListHosts(ctx, flake)
	return d, err
}

// declaration is the function that Nix applies to the outputs of the flake.
func declaration(attrs []string) string {
	var values strings.Builder
	for _, attr := range attrs {
		path := quotedPath(attr)
		fmt.Fprintf(&values, "(if outputs ? %s then { value = outputs.%s; } else { }) ", path, path)
	}
	return fmt.Sprintf("outputs: { attributes = [ %s]; nixos = builtins.attrNames (outputs.%sConfigurations or { }); "+
		"darwin = builtins.attrNames (outputs.%sConfigurations or { }); }", values.String(), KindNixOS, KindDarwin)
}

// quotedPath turns the path of an attribute, in which a name may be quoted, into one in which every name is quoted.
func quotedPath(attr string) string {
	var names []string
	var name strings.Builder
	quoted := false
	end := func() {
		names = append(names, quotedName(name.String()))
		name.Reset()
	}
	for _, r := range attr {
		switch {
		case r == '"':
			quoted = !quoted
		case r == '.' && !quoted:
			end()
		default:
			name.WriteRune(r)
		}
	}
	end()
	return strings.Join(names, ".")
}

// quotedName is a name as Nix reads it in quotes.
func quotedName(name string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `${`, `\${`).Replace(name) + `"`
}

// flakeHosts joins the hosts of both kinds, sorted by name.
func flakeHosts(nixos, darwin []string) []FlakeHost {
	hosts := make([]FlakeHost, 0, len(nixos)+len(darwin))
	for _, name := range nixos {
		hosts = append(hosts, FlakeHost{Name: name, Kind: KindNixOS})
	}
	for _, name := range darwin {
		hosts = append(hosts, FlakeHost{Name: name, Kind: KindDarwin})
	}
	slices.SortFunc(hosts, func(a, b FlakeHost) int { return strings.Compare(a.Name, b.Name) })
	return hosts
}
