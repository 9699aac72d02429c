package command

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/urfave/cli/v2"

	"nixfleet/pki"
)

// JSONFlag is --json, which every command that prints an answer has.
func JSONFlag() *cli.BoolFlag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON for programs"}
}

// Document prints a value as one indented JSON document.
func Document(c *cli.Context, v any) error {
	doc, err := pki.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return Text(c, doc)
}

// Text prints a JSON document as it came, indented.
func Text(c *cli.Context, text jsontext.Value) error {
	if err := text.Indent(jsontext.WithIndent("  "), jsontext.AllowDuplicateNames(true)); err != nil {
		return fmt.Errorf("format answer: %w", err)
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s\n", text)
	return err
}

// Line prints a value as JSON on one line.
func Line(c *cli.Context, v any) error {
	doc, err := pki.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s\n", doc)
	return err
}
