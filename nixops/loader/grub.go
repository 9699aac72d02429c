package loader

import (
	"errors"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"

	"nixfleet/nixops/disk"
)

// grubItem is a menu entry or a submenu of grub.cfg.
type grubItem struct {
	title, id string
	closure   string
	submenu   bool
	items     []*grubItem
}

var (
	grubTitle   = regexp.MustCompile(`^(menuentry|submenu)\s+(?:"([^"]*)"|'([^']*)'|(\S+))`)
	grubID      = regexp.MustCompile(`\s--id[ =]"?'?([^\s"']+)`)
	grubDefault = regexp.MustCompile(`(?m)^[ \t]*set default="?([^"\n]*?)"?[ \t]*$`)
)

// readGrub reads the configuration that NixOS writes for GRUB, and the environment block that it refers to.
func readGrub(root, dir string) State {
	s := State{Loader: "GRUB", dir: dir}
	data, err := disk.ReadLinked(path.Join(root, dir, "grub/grub.cfg"), maxConfig)
	if err != nil {
		s.Default = unknown("grub.cfg cannot be read: %v", err)
		return s
	}
	s.text = string(data)
	env, err := grubEnvironment(path.Join(root, dir, "grub/grubenv"))
	if err != nil {
		s.Default = unknown("grubenv cannot be read: %v", err)
		return s
	}
	items := grubMenu(s.text)
	want, onceRead := "", false
	for _, m := range grubDefault.FindAllStringSubmatch(s.text, -1) {
		if m[1] == "${next_entry}" {
			onceRead = true
		} else {
			want = m[1] // the last one is that of a boot without next_entry
		}
	}
	if want == "${saved_entry}" {
		want = env["saved_entry"]
	}
	s.Default = grubChoice(items, want)
	if next := env["next_entry"]; onceRead && next != "" {
		s.Once, s.OnceSet = grubChoice(items, next), true
	}
	return s
}

// grubEnvironment reads a block of environment; one that does not exist is empty.
func grubEnvironment(file string) (map[string]string, error) {
	data, err := disk.ReadLinked(file, maxEntry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok && line[0] != '#' {
			env[name] = value
		}
	}
	return env, nil
}

// grubMenu reads the entries of a configuration, with the entries of submenus inside them.
func grubMenu(config string) []*grubItem {
	top := &grubItem{submenu: true}
	open := []*grubItem{top}
	for line := range strings.Lines(config) {
		line = strings.TrimSpace(line)
		inside := open[len(open)-1]
		m := grubTitle.FindStringSubmatch(line)
		switch {
		case m != nil && inside != nil:
			item := &grubItem{title: firstOf(m[2], m[3], m[4]), submenu: m[1] == "submenu"}
			if id := grubID.FindStringSubmatch(line); id != nil {
				item.id = id[1]
			}
			inside.items = append(inside.items, item)
			open = append(open, item)
		case strings.HasSuffix(line, "{") && !strings.Contains(line, "${"):
			open = append(open, nil) // a function
		case line == "}" && len(open) > 1:
			open = open[:len(open)-1]
		case inside != nil && inside != top && inside.closure == "":
			inside.closure = Closure(line)
		}
	}
	return top.items
}

// grubChoice follows a default such as `1`, `NixOS` or `1>0`. GRUB starts the first entry if there is no such one.
func grubChoice(items []*grubItem, want string) Choice {
	head, tail, nested := strings.Cut(want, ">")
	if strings.Contains(want, "$") {
		return unknown("GRUB's default %q depends on a variable", want)
	}
	if len(items) == 0 {
		return unknown("GRUB's configuration has no entry")
	}
	chosen := items[0]
	if n, err := strconv.Atoi(head); err == nil {
		if n >= 0 && n < len(items) {
			chosen = items[n]
		}
	} else {
		for _, item := range items {
			if item.id != "" && item.id == head || item.title == head {
				chosen = item
				break
			}
		}
	}
	switch {
	case chosen.submenu && nested:
		return grubChoice(chosen.items, tail)
	case chosen.submenu:
		return unknown("GRUB's default is the submenu %q", chosen.title)
	case chosen.closure == "":
		return unknown("GRUB's entry %q does not say which system it starts", chosen.title)
	}
	return Choice{Closure: chosen.closure}
}
