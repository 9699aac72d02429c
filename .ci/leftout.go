//go:build ignore

// Leftout reads `go test -json` and prints what `go test` would, and at the end one line for each kind of test that was
// skipped, with the command that has it: go test -json ./... | go run .ci/leftout.go .ci/leftout.tsv
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// event is a line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
}

// kind is a row of the table.
type kind struct {
	pattern        *regexp.Regexp
	lacks, command string
	tests          int
}

func main() {
	kinds, err := read(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "leftout:", err)
		os.Exit(1)
	}
	failed, others := false, map[string]int{}
	said := map[string]string{} // package and test -> its output
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // a build that failed
			failed = true
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			said[key] += e.Output
		case "fail", "build-fail":
			failed = true
			fmt.Print(said[key])
			delete(said, key)
		case "skip":
			if e.Test != "" && !count(kinds, said[key]) {
				others[key]++
			}
			delete(said, key)
		case "pass":
			if e.Test == "" {
				fmt.Print(last(said[key]))
			}
			delete(said, key)
		}
	}
	for _, k := range kinds {
		if k.tests > 0 {
			fmt.Printf("left out: %d tests that need %s: %s\n", k.tests, k.lacks, k.command)
		}
	}
	for key := range others {
		fmt.Printf("left out: %s: no row of %s says why\n", key, os.Args[1])
	}
	if failed || lines.Err() != nil {
		os.Exit(1)
	}
}

// read reads the table.
func read(file string) ([]*kind, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var kinds []*kind
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		cells := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(cells) != 3 {
			return nil, fmt.Errorf("%s: %q does not have three cells", file, line)
		}
		pattern, err := regexp.Compile(cells[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		kinds = append(kinds, &kind{pattern: pattern, lacks: cells[1], command: cells[2]})
	}
	return kinds, nil
}

// count counts a skipped test for the first kind that its output matches, and says whether there is one.
func count(kinds []*kind, output string) bool {
	for _, k := range kinds {
		if k.pattern.MatchString(output) {
			k.tests++
			return true
		}
	}
	return false
}

// last is the last line of a text.
func last(text string) string {
	text = strings.TrimRight(text, "\n")
	return text[strings.LastIndex(text, "\n")+1:] + "\n"
}
