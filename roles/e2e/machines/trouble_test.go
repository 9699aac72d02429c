package machines

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	scenarios = append(scenarios,
		scenario{"cp-away", playControlPlaneAway},
		scenario{"cache-away", playCacheAway},
		scenario{"cache-slow", playCacheSlow},
		scenario{"cache-corrupt", playCacheCorrupt},
		scenario{"cache-unsigned", playCacheUnsigned},
		scenario{"cache-other", playCacheOther},
		scenario{"store-small", playStoreSmall},
		scenario{"store-full", playStoreFull},
	)
	for _, step := range []string{"fetching", "switching", "checking", "committing", "committed"} {
		scenarios = append(scenarios, scenario{"cp-" + step, func(t *testing.T, g *ground) { playControlPlaneKilled(t, g, step) }})
	}
	exits := []struct {
		code, reason string
		change       change
	}{
		{"2", "exit 2", knob("activation-exit", "1")},
		{"4", "bad.service", unit("bad.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")},
		{"101", "exit 101", knob("exit", "101")},
	}
	for _, e := range exits {
		scenarios = append(scenarios, scenario{"exit-" + e.code, func(t *testing.T, g *ground) {
			p := newPlay(t, g, g.main, "exit-"+e.code)
			p.release(p.next("next", e.change))
			p.back(2*time.Minute, e.reason, true)
			p.tell("switch-to-configuration ends with "+e.code, onOld, "")
		}})
	}
	scenarios = append(scenarios, scenario{"exit-11", func(t *testing.T, g *ground) {
		p := newPlay(t, g, g.main, "exit-11")
		p.release(p.next("next", knob("exit", "11")))
		p.remembers("lock-held")
		p.settled(time.Minute, all(p.first))
		p.healthy()
		p.tell("switch-to-configuration ends with 11", onOld, "")
	}})
	scenarios = append(scenarios, scenario{"exit-1", func(t *testing.T, g *ground) {
		p := newPlay(t, g, g.main, "exit-1")
		p.release(p.next("next", knob("check-exit", "1")))
		p.stays("activation-failed", "check")
		p.tell("switch-to-configuration's check ends with 1", onOld, "")
	}})
}

// One control plane for each: the others must not miss it.
func (g *ground) ownControlPlane(t *testing.T, name string) *controlPlane {
	cp := g.newControlPlane(t, name)
	cp.start(t)
	return cp
}

func playControlPlaneKilled(t *testing.T, g *ground, step string) {
	name := "cp-" + step
	cp := g.ownControlPlane(t, name)
	p := newPlay(t, g, cp, name)
	next := p.next("next", knob("seconds", "2"), knob("boot-seconds", "2"))
	if step == "fetching" {
		g.hook(p.m, trickle(4*time.Second))
	}
	p.release(next)
	if step == "committed" {
		// Only what nobody answers stays there long enough to be seen.
		p.at("committing")
	} else {
		p.at(step)
	}
	cp.kill()
	if step == "committed" {
		p.at("committed")
	}
	time.Sleep(3 * time.Second)
	cp.start(t)
	p.confirmed(next)
	if s, err := p.status(); err != nil || s.Quarantine != nil && s.Quarantine.Failures > 0 {
		t.Errorf("status %+v, %v: nothing may be quarantined", s, err)
	}
	p.tell("control plane killed while "+step, onNew, "converged once it was back")
}

// An hour without a control plane is modelled by one and a half confirm windows: what
// follows depends on the window and on contact, not on the hour.
func playControlPlaneAway(t *testing.T, g *ground) {
	cp := g.ownControlPlane(t, "cp-away")
	p := newPlay(t, g, cp, "cp-away")
	next := p.next("next", knob("seconds", "2"))
	p.release(next)
	p.at("switching")
	cp.kill()
	until(t, 2*time.Minute, "the host takes it back by itself", func() string {
		if s := p.m.step(); s == "undone" || s == "" {
			return ""
		}
		return p.m.step()
	})
	if o := p.outside(); o != all(p.first) {
		t.Errorf("without a control plane the host is %+v", o)
	}
	if rest := 90*time.Second - time.Since(p.begun); rest > 0 {
		time.Sleep(rest)
	}
	cp.start(t)
	p.back(2*time.Minute, "control-plane-unreachable", false)
	p.confirmed(next)
	p.tell("control plane away for long", onOld+", then the new one by itself", "control-plane-unreachable; nothing quarantined; converged after it was back")
}

// trickle serves the content of paths slowly, over the given time.
func trickle(over time.Duration) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".nar") {
			return false
		}
		slow := &slowWriter{ResponseWriter: w, pause: over / slowParts}
		if dir, ok := r.Context().Value(cacheDir{}).(string); ok {
			slow.serve(filepath.Join(dir, filepath.FromSlash(r.URL.Path)))
			return true
		}
		return false
	}
}

// cacheDir is the key under which a request knows the directory of the cache.
type cacheDir struct{}

const slowParts = 20

type slowWriter struct {
	http.ResponseWriter
	pause time.Duration
}

func (s *slowWriter) serve(file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		http.Error(s, err.Error(), http.StatusNotFound)
		return
	}
	s.Header().Set("Content-Length", fmt.Sprint(len(data)))
	for part := range slowParts {
		begin, end := len(data)*part/slowParts, len(data)*(part+1)/slowParts
		if _, err := s.Write(data[begin:end]); err != nil {
			return
		}
		http.NewResponseController(s.ResponseWriter).Flush()
		time.Sleep(s.pause)
	}
}

func playCacheAway(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "cache-away")
	next := p.next("next")
	g.hook(p.m, func(w http.ResponseWriter, r *http.Request) bool {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			conn.Close()
		}
		return true
	})
	p.release(next)
	p.stays("realise-failed", next)
	g.hook(p.m, nil)
	p.confirmed(next)
	p.tell("cache unreachable for a while", onOld+", then the new one by itself", "realise-failed; nothing quarantined; then converged")
}

// A download is no part of the confirm window (A9).
func playCacheSlow(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "cache-slow")
	next := p.next("next")
	g.hook(p.m, trickle(75*time.Second))
	p.release(next)
	p.confirmed(next)
	if took := time.Since(p.begun); took < 70*time.Second {
		t.Errorf("the download was to take longer than the window, all took %s", took)
	}
	p.tell("slow cache: a download that outlives the confirm window", onNew, "downloading, then converged")
}

func playCacheCorrupt(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "cache-corrupt")
	next := p.next("next")
	g.cache.Corrupt(t, next)
	p.release(next)
	p.stays("closure-signature-mismatch", next)
	p.tell("cache serves a corrupt NAR", onOld, "")
}

func playCacheUnsigned(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "cache-unsigned")
	next := p.next("next")
	g.cache.DropSignatures(t, next)
	p.release(next)
	p.stays("closure-signature-mismatch", next)
	p.tell("cache serves an unsigned path", onOld, "")
}

func playCacheOther(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "cache-other")
	next, other := p.next("next"), p.next("other")
	g.cache.Swap(t, next, other)
	p.release(next)
	p.stays("closure-signature-mismatch", next)
	p.tell("cache serves another path under the name", onOld, "")
}

// mountStore puts the machine's store on a file system of its own.
func mountStore(t *testing.T, options string) func(*machine) {
	return func(m *machine) {
		must(t, os.MkdirAll(m.path("/nix"), 0o755))
		must(t, syscall.Mount("tmpfs", m.path("/nix"), "tmpfs", 0, options))
		t.Cleanup(func() { syscall.Unmount(m.path("/nix"), syscall.MNT_DETACH) })
	}
}

func playStoreSmall(t *testing.T, g *ground) {
	p := newPlayOn(t, g, g.main, "store-small", "channel-store-small", mountStore(t, "size=300m"))
	p.release(p.next("next"))
	p.stays("realise-failed", "no-space")
	p.tell("store nearly full", onOld, "")
}

// The store becomes full in the middle of the download (A14): of files, since what a
// test can fill in no time are inodes.
func playStoreFull(t *testing.T, g *ground) {
	p := newPlayOn(t, g, g.main, "store-full", "channel-store-full", mountStore(t, "size=2g"))
	next := p.next("next")
	g.hook(p.m, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, ".nar") {
			var full syscall.Statfs_t
			if err := syscall.Statfs(p.m.path("/nix"), &full); err != nil {
				t.Error(err)
			}
			if err := syscall.Mount("tmpfs", p.m.path("/nix"), "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=2g,nr_inodes=%d", full.Files-full.Ffree+3)); err != nil {
				t.Error(err)
			}
		}
		return false
	})
	p.release(next)
	p.stays("realise-failed", "no space left")
	p.tell("store full in the middle of the download", onOld, "")
}
