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
	begin := func(name string) func(*testing.T, *ground) *play {
		return func(t *testing.T, g *ground) *play { return newPlay(t, g, g.main, name) }
	}
	scenarios = append(scenarios,
		scenario{"cp-away", playControlPlaneAway},
		scenario{"cache-away", playCacheAway},
		scenario{"cache-slow", playCacheSlow},
		course("cache-bad", begin("cache-bad"), part{"corrupt", playCacheCorrupt}, part{"unsigned", playCacheUnsigned},
			part{"other", playCacheOther}),
		scenario{"store-small", playStoreSmall},
		scenario{"store-full", playStoreFull},
		course("exit-codes", begin("exit-codes"),
			part{"check-1", playCheckRefuses},
			// The checks run with the switch where the script knows none by themselves.
			exits("1", "switch: exit 1", func(s *system) { s.knobs["no-check"], s.knobs["check-exit"] = "1", "1" }),
			exits("2", "switch: exit 2", knob("activation-exit", "1")),
			exits("4", "bad.service", unit("bad.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")),
			exits("101", "switch: exit 101", knob("exit", "101")),
			part{"boot-1", playBootFails},
		),
		scenario{"exit-11", playLockedExit},
	)
}

// exits is a part whose switch ends with a code for which it is blamed.
func exits(code, reason string, how change) part {
	return part{code, func(p *play, next func(...change) string) {
		p.release(next(how))
		p.back(reason, true)
		p.tell("switch-to-configuration ends with "+code, onOld, "")
	}}
}

func playCheckRefuses(p *play, next func(...change) string) {
	p.release(next(knob("check-exit", "1")))
	p.stays("activation-failed", "check")
	p.tell("switch-to-configuration's check ends with 1", onOld, "")
}

func playBootFails(p *play, next func(...change) string) {
	p.release(next(knob("boot-exit", "1")))
	p.back("boot: exit 1", true)
	p.tell("the boot loader's installer fails after the proof", onOld, "")
}

func playLockedExit(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "exit-11")
	p.release(p.next("next", knob("exit", "11")))
	p.remembers("lock-held")
	p.settled(all(p.first))
	p.healthy()
	p.tell("switch-to-configuration ends with 11", onOld, "")
}

// One control plane for each: the others must not miss it.
func (g *ground) ownControlPlane(t *testing.T, name string, f *forge) *controlPlane {
	t.Helper()
	cp := g.newControlPlane(t, name, f)
	cp.start(t)
	return cp
}

// An hour without a control plane is modelled by one and a half confirm windows: what
// follows depends on the window and on contact, not on the hour.
func playControlPlaneAway(t *testing.T, g *ground) {
	cp := g.ownControlPlane(t, "cp-away", g.brief.forge)
	p := newPlay(t, g, cp, "cp-away")
	next := p.next("next")
	h := p.hold("switching")
	p.release(next)
	h.wait(t)
	cp.kill()
	h.release()
	until(t, "the host takes it back by itself", func() string {
		if s := p.m.step(); s != "" {
			return "it is " + s
		}
		return ""
	})
	if o := p.outside(); o != all(p.first) {
		t.Errorf("without a control plane the host is %+v", o)
	}
	p.blameless()
	time.Sleep(time.Until(p.begun.Add(briefWindow + briefWindow/2)))
	cp.start(t)
	p.hears("control-plane-unreachable")
	p.confirmed(next) // it is tried again without anybody asking
	p.tell("control plane away for long", onOld+", then the new one by itself",
		"control-plane-unreachable; nothing quarantined; converged after it was back")
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
	p.tell("cache unreachable for a while", onOld+", then the new one by itself",
		"realise-failed; nothing quarantined; then converged")
}

// A download is not a part of the confirm window (A9).
func playCacheSlow(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "cache-slow")
	next := p.next("next")
	const over = briefWindow + 15*time.Second
	g.hook(p.m, trickle(over))
	p.release(next)
	p.confirmed(next)
	if took := time.Since(p.begun); took < over {
		t.Errorf("the download was to take %s, all took %s", over, took)
	}
	p.tell("slow cache: a download that outlives the confirm window", onNew, "downloading, then converged")
}

func playCacheCorrupt(p *play, next func(...change) string) {
	closure := next()
	p.g.cache.Corrupt(p, closure)
	p.release(closure)
	p.stays("closure-signature-mismatch", closure)
	p.tell("cache serves a corrupt NAR", onOld, "")
}

func playCacheUnsigned(p *play, next func(...change) string) {
	closure := next()
	p.g.cache.DropSignatures(p, closure)
	p.release(closure)
	p.stays("closure-signature-mismatch", closure)
	p.tell("cache serves an unsigned path", onOld, "")
}

func playCacheOther(p *play, next func(...change) string) {
	closure, other := next(), p.next("elsewhere")
	p.g.cache.Swap(p, closure, other)
	p.release(closure)
	p.stays("closure-signature-mismatch", closure)
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
			if err := syscall.Mount("tmpfs", p.m.path("/nix"), "tmpfs", syscall.MS_REMOUNT,
				fmt.Sprintf("size=2g,nr_inodes=%d", full.Files-full.Ffree+3)); err != nil {
				t.Error(err)
			}
		}
		return false
	})
	p.release(next)
	p.stays("realise-failed", "no space left")
	p.tell("store full in the middle of the download", onOld, "")
}
