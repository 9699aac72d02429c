//go:build ignore

// Sbom writes the bill of materials of an executable, in CycloneDX 1.5's JSON: go run .ci/sbom.go EXECUTABLE >sbom.json
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
)

type component struct {
	Type    string  `json:"type"`
	Name    string  `json:"name"`
	Version string  `json:"version"`
	Purl    string  `json:"purl,omitempty"`
	Hashes  []hash  `json:"hashes,omitempty"`
	Ref     string  `json:"bom-ref"`
	Origin  []notes `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type notes struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func main() {
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(executable string) error {
	info, err := buildinfo.ReadFile(executable)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(executable)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	whole := component{Type: "application", Name: info.Main.Path, Version: info.Main.Version, Ref: info.Main.Path,
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}}}
	parts := []component{{Type: "library", Name: "std", Version: info.GoVersion, Ref: "std",
		Purl: "pkg:golang/std@" + info.GoVersion}}
	for _, d := range info.Deps {
		parts = append(parts, component{Type: "library", Name: d.Path, Version: d.Version,
			Purl: "pkg:golang/" + d.Path + "@" + d.Version, Ref: d.Path,
			Origin: []notes{{"go.sum", d.Sum}}})
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(map[string]any{"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata": map[string]any{"component": whole}, "components": parts})
}
