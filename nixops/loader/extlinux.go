package loader

import (
	"path"
	"strings"

	"nixfleet/nixops/disk"
)

// readExtlinux reads the configuration that NixOS writes for U-Boot and for extlinux: the entry whose label DEFAULT
// names.
func readExtlinux(root, dir string) State {
	s := State{Loader: "extlinux", dir: dir}
	data, err := disk.ReadLinked(path.Join(root, dir, "extlinux/extlinux.conf"), maxConfig)
	if err != nil {
		s.Default = unknown("extlinux.conf cannot be read: %v", err)
		return s
	}
	s.text = string(data)
	want, label, closure := "", "", ""
	closures := map[string]string{}
	for key, value := range keys(s.text) {
		switch strings.ToUpper(key) {
		case "DEFAULT":
			want = value
		case "LABEL":
			label = value
		case "APPEND":
			closures[label] = Closure(value)
		}
	}
	if closure = closures[want]; want == "" || closure == "" {
		s.Default = unknown("extlinux's default %q does not say which system it starts", want)
		return s
	}
	s.Default = Choice{Closure: closure}
	return s
}
