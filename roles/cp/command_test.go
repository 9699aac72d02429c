package cp

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// typed types `nixfleet cp ARGS` and returns what is printed and the exit code.
func typed(t *testing.T, ctx context.Context, args ...string) (string, int, error) {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{
		Name: "nixfleet", Version: "0.0.1 (commit test)", Commands: []*cli.Command{Command()}, Writer: &out, ErrWriter: &out,
		ExitErrHandler: func(*cli.Context, error) {},
	}
	err := app.RunContext(ctx, append([]string{"nixfleet", "cp"}, args...))
	var coded interface{ ExitCode() int }
	switch {
	case err == nil:
		return out.String(), 0, nil
	case errors.As(err, &coded):
		return out.String(), coded.ExitCode(), err
	}
	return out.String(), -1, err
}

// serialEstate is for tests of command lines, which do not run beside each
// other (all applications of the cli package share its help flag), and of what
// the process or a bubble has only one of.
func serialEstate(t *testing.T, hosts ...string) *estate {
	t.Helper()
	return newEstate(struct{ testing.TB }{t}, hosts...)
}

// serveFlags are a complete command line.
func (e *estate) serveFlags() []string {
	return []string{
		"--listen", "127.0.0.1:0", "--tls-cert", e.path("server.pem"), "--tls-key", e.path("server.key"), "--client-ca",
		e.path("client-ca.pem"),
		"--trust-file", e.path("trust.json"), "--state-dir", e.path("state"), "--db-path", e.path("state/state.db"),
		"--source", e.release,
		"--fleet-ca-cert", e.path("ca.pem"), "--fleet-ca-key", e.path("ca.key"), "--agent-cn-suffix", testSuffix,
	}
}

func TestServeRunsUntilItIsTold(t *testing.T) {
	e := serialEstate(t, "a")
	for _, format := range []string{"json", "pretty"} {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		out, code, err := typed(t, ctx, append([]string{"serve", "--log-format", format}, e.serveFlags()...)...)
		cancel()
		if code != 0 || !strings.Contains(out, "snapshot refreshed") || !strings.Contains(out, "control plane stops") {
			t.Errorf("%s: exit %d, %v:\n%s", format, code, err, out)
		}
		if first, _, _ := strings.Cut(out, "\n"); (format == "json") != strings.HasPrefix(first, `{"level"`) {
			t.Errorf("%s: %s", format, first)
		}
	}
}

func TestServeCannotStart(t *testing.T) {
	e := serialEstate(t, "a")
	for name, args := range map[string][]string{
		"no certificate": {"--tls-cert", e.path("none.pem")},
		"no trust file":  {"--trust-file", e.path("none.json")},
		"address in use": {"--listen", "256.0.0.1:1"},
		"wrong CA key":   {"--fleet-ca-key", e.path("server.key")},
		"log format":     {"--log-format", "xml"},
		"log level":      {"--log-level", "loud"},
	} {
		if out, code, err := typed(t, t.Context(),
			append(append([]string{"serve"}, e.serveFlags()...), args...)...); code != 2 {
			t.Errorf("%s: exit %d (%v), want 2\n%s", name, code, err, out)
		}
	}
}

func TestServeHandsOnTheHintOfWhatFailed(t *testing.T) {
	e := serialEstate(t, "a")
	e.write("state/state.db", []byte("this is not a database, whatever it is called"))
	_, code, err := typed(t, t.Context(), append([]string{"serve"}, e.serveFlags()...)...)
	if hint := command.HintOf(err); code != 2 || !strings.HasPrefix(hint, "restore a backup") {
		t.Errorf("exit %d %v, hint %v", code, err, hint)
	}
}

func TestCheckConfigChangesNothing(t *testing.T) {
	e := serialEstate(t, "a")
	out, code, err := typed(t, t.Context(), append([]string{"serve", "--check-config"}, e.serveFlags()...)...)
	if code != 0 || out != "configuration is good\n" {
		t.Errorf("exit %d %v: %s", code, err, out)
	}
	if _, err := os.Stat(e.path("state")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory was made: %v", err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"half a pair": {[]string{"--revocations-artifact-url", "http://x"}, "together"},
		"revocations without db": {[]string{"--revocations-artifact-url", "http://x", "--revocations-signature-url",
			"http://y", "--db-path", ""}, "--db-path"},
		"template": {[]string{"--rollouts-source-artifact-url-template", "http://x",
			"--rollouts-source-signature-url-template", "http://x/{rolloutId}"}, "{rolloutId}"},
		"validity": {[]string{"--agent-cert-validity-secs", "59"}, "at least 60"},
		"a window too long": {[]string{"--freshness-window-secs", "4294967296"},
			"--freshness-window-secs must be at most 4294967295"},
		"a deadline too long": {[]string{"--confirm-deadline-secs", "9223372037"},
			"--confirm-deadline-secs must be at most 4294967295"},
		"a validity too long": {[]string{"--agent-cert-validity-secs", "9223372036854775807"},
			"--agent-cert-validity-secs must be at most 4294967295"},
		"a window far in front": {[]string{"--freshness-window-secs", "-9223372036854775808"}, "above zero"},
		"no rate":               {[]string{"--max-rate", "-1"}, "--max-rate"},
		"a rate without bounds": {[]string{"--max-source-rate", "9223372036854775807"}, "--max-source-rate"},
		"no suffix":             {[]string{"--agent-cn-suffix", ""}, "--agent-cn-suffix"},
		"no source":             {[]string{"--source", ""}, "no source"},
		"half a local pair":     {[]string{"--artifact", "x"}, "--signature"},
		"half a TPM":            {[]string{"--tpm-ca-pubkey-raw", "x"}, "together"},
		"source of no kind":     {[]string{"--source", "ftp://x"}, "git+https"},
		"strict without CA":     {[]string{"--strict", "--client-ca", ""}, "--client-ca"},
		"unreadable file":       {[]string{"--webhook-token-file", e.path("none")}, "none"},
		"no certificate in it":  {[]string{"--client-ca", e.path("trust.json")}, "client CA"},
	} {
		args := append(append([]string{"serve"}, e.serveFlags()...), append(c.args, "--check-config")...)
		out, code, err := typed(t, t.Context(), args...)
		if code != 2 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: exit %d %v, want 2 and %q\n%s", name, code, err, c.want, out)
		}
	}
}

// flagged parses a command line into a Config.
func flagged(t *testing.T, args ...string) (cfg Config, err error) {
	t.Helper()
	c := serveCommand()
	c.Action = func(c *cli.Context) error {
		log, err := newLogger(c)
		cfg = configOf(c, log)
		return err
	}
	app := &cli.App{Commands: []*cli.Command{c}, Writer: &bytes.Buffer{}, ErrWriter: &bytes.Buffer{},
		ExitErrHandler: func(*cli.Context, error) {}}
	return cfg, app.Run(append([]string{"nixfleet", "serve"}, args...))
}

func TestSwitchesReadAllTheirWords(t *testing.T) {
	for word, want := range map[string]bool{"1": true, "yes": true, "ON": true, "true": true, "0": false, "no": false,
		"Off": false, "false": false, "": false} {
		t.Setenv("NIXFLEET_CP_STRICT", word)
		cfg, err := flagged(t)
		if err != nil || cfg.Strict != want {
			t.Errorf("NIXFLEET_CP_STRICT=%s: %v %v", word, cfg.Strict, err)
		}
	}
	t.Setenv("NIXFLEET_CP_STRICT", "maybe")
	if _, err := flagged(t); err == nil {
		t.Error("NIXFLEET_CP_STRICT=maybe was accepted")
	}
	t.Setenv("NIXFLEET_CP_STRICT", "1")
	for arg, want := range map[string]bool{"--strict": true, "--strict=yes": true, "--strict=off": false} {
		if cfg, err := flagged(t, arg, "--max-held", "7"); err != nil || cfg.Strict != want || cfg.MaxHeld != 7 {
			t.Errorf("%s: %v %v", arg, cfg.Strict, err)
		}
	}
}

func TestEveryFlagHasItsVariable(t *testing.T) {
	for _, f := range flags() {
		doc, ok := f.(cli.DocGenerationFlag)
		name := f.Names()[0]
		want := "NIXFLEET_CP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if !ok || !reflect.DeepEqual(doc.GetEnvVars(), []string{want}) {
			t.Errorf("--%s has variables %v, want %s", name, doc.GetEnvVars(), want)
		}
	}
	out, code, _ := typed(t, t.Context(), "serve", "--help")
	if code != 0 || !strings.Contains(out, "Example:") || !strings.Contains(out, "--strict") ||
		!strings.Contains(out, "NIXFLEET_CP_STRICT") {
		t.Errorf("help, exit %d:\n%s", code, out)
	}
}

func TestStateIsKeptBesideTheDatabase(t *testing.T) {
	for _, c := range []struct{ dir, db, want string }{{"", "", defaultStateDir}, {"", "/srv/x/state.db", "/srv/x"},
		{"/srv/y", "/srv/x/state.db", "/srv/y"}} {
		cfg, err := flagged(t, "--state-dir", c.dir, "--db-path", c.db)
		if err != nil {
			t.Fatal(err)
		}
		_ = cfg.complete() // the rest is missing
		if cfg.StateDir != c.want || cfg.AuditLog != c.want+"/issuance.log" {
			t.Errorf("%+v: %s, %s", c, cfg.StateDir, cfg.AuditLog)
		}
	}
}

func TestTheTokenOfChannelRefsIsTheDefault(t *testing.T) {
	cfg, err := flagged(t, "--channel-refs-token-file", "a", "--bootstrap-nonces-token-file", "b")
	if err != nil || cfg.RevocationsSource.TokenFile != "a" || cfg.NoncesSource.TokenFile != "b" ||
		cfg.Rollouts.TokenFile != "a" {
		t.Errorf("%+v %v", cfg, err)
	}
}

// tickLines runs tick over an observed state.
func (e *estate) tick(t *testing.T, observed string, args ...string) ([]map[string]any, int) {
	t.Helper()
	e.write("observed.json", []byte(observed))
	base := []string{"tick", "--artifact", filepath.Join(e.release, fleet.FleetName), "--signature",
		filepath.Join(e.release, fleet.FleetName+".sig"),
		"--trust-file", e.path("trust.json"), "--observed", e.path("observed.json")}
	out, code, _ := typed(t, t.Context(), append(base, args...)...)
	var lines []map[string]any
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		lines = append(lines, v)
	}
	return lines, code
}

const nothingObserved = `{"channelRefs":{},"lastRolledRefs":{},"hostState":{},"activeRollouts":[]}`

func TestTickPlansWhatWasObserved(t *testing.T) {
	e := serialEstate(t, "a", "b", "c")
	observed := `{"channelRefs":{"stable":"r2","lost":"x"},"lastRolledRefs":{"stable":"r1"},"activeRollouts":[],"hostState":{
		"a":{"online":true,"currentGeneration":"` + closureOf("a", 0) + `"},
		"b":{"online":true,"currentGeneration":"` + closureOf("b", 0) + `"},
		"c":{"online":false,"currentGeneration":null}}}`
	lines, code := e.tick(t, observed)
	if code != 0 || len(lines) == 0 {
		t.Fatalf("exit %d: %v", code, lines)
	}
	summary := lines[0]
	if summary["event"] != "tick" || summary["verify_ok"] != true || summary["channels_observed"] != 2. ||
		summary["active_rollouts"] != 0. ||
		summary["actions"] != float64(len(lines)-1) || !strings.HasSuffix(summary["signed_at"].(string), "+00:00") ||
		summary["ci_commit"] != strings.Repeat("ab", 20) {
		t.Errorf("summary %v", summary)
	}
	want := []map[string]any{
		{"action": "channel_unknown", "channel": "lost"},
		{"action": "open_rollout", "channel": "stable", "target_ref": "r2"},
		{"action": "dispatch_host", "host": "a", "rollout": e.rolloutID(), "target_ref": strings.Repeat("ab", 20)},
		{"action": "skip", "host": "b", "reason": "wave"},
		{"action": "skip_summary", "reason": "offline", "hosts": []any{"c"}},
	}
	if got := lines[1:]; !reflect.DeepEqual(got, want) {
		t.Errorf("actions\n%v\nwant\n%v", got, want)
	}
}

func TestTickGoesOnWithAnActiveRollout(t *testing.T) {
	e := serialEstate(t, "a", "b")
	observed := func(extra string) string {
		return `{"channelRefs":{"stable":"r"},"lastRolledRefs":{},"hostState":{
		"a":{"online":true,"currentGeneration":"` + closureOf("a", 1) + `"},
		"b":{"online":true,"currentGeneration":"` + closureOf("b", 0) + `"}},
		"activeRollouts":[{"id":"` + e.rolloutID() + `","channel":"stable","targetRef":"r","state":"Executing","currentWave":0,
		"hostStates":{"a":"Healthy","b":"Queued"},"lastHealthySince":{"a":"` + pki.At(time.Now().Add(-time.Minute)).String() + `"}}]` + extra + `}`
	}
	kinds := func(lines []map[string]any) (names []string) {
		for _, l := range lines[1:] {
			names = append(names, l["action"].(string))
		}
		return names
	}
	lines, code := e.tick(t, observed(""))
	if got, want := kinds(lines), []string{"promote_wave", "soak_host", "skip", "dispatch_host"}; code != 0 ||
		!reflect.DeepEqual(got, want) {
		t.Errorf("exit %d, actions %v, want %v\n%v", code, got, want, lines)
	}
	lines, _ = e.tick(t, observed(`,"hostProbesObserved":{"a":true},"hostProbesPassing":{"a":false}`))
	for _, l := range lines {
		if l["action"] == "promote_wave" || l["action"] == "dispatch_host" {
			t.Errorf("with failing probes: %v", l)
		}
	}
}

// TestTickKnowsHostsInFlightAndFailures observes what v1's control planes write down: states of hosts, not dispatches.
func TestTickKnowsHostsInFlightAndFailures(t *testing.T) {
	one := uint32(1)
	e := serialEstate(t, "a", "b", "c")
	e.fleet.Waves["stable"] = []fleet.Wave{{Hosts: []string{"a", "b", "c"}}}
	e.fleet.DisruptionBudgets = []fleet.Budget{{Selector: fleet.Selector{All: true}, MaxInFlight: &one}}
	e.publish()
	observed := func(id, channel, state, a string) string {
		hosts := ""
		for _, name := range []string{"b", "c"} {
			hosts += `,"` + name + `":{"online":true,"currentGeneration":"` + closureOf(name, 0) + `"}`
		}
		return `{"channelRefs":{},"lastRolledRefs":{},"hostState":{
		"a":{"online":true,"currentGeneration":"` + closureOf("a", 0) + `"}` + hosts + `},
		"activeRollouts":[{"id":"` + id + `","channel":"` + channel + `","targetRef":"r","state":"` + state +
			`","currentWave":0,"hostStates":{"a":"` + a + `","b":"Queued","c":"Queued"}}]}`
	}
	for _, c := range []struct {
		name, observed string
		want           []string
	}{
		{"queued", observed(e.rolloutID(), "stable", "Executing", "Queued"),
			[]string{"dispatch_host a", "skip b", "skip c"}},
		{"in flight", observed(e.rolloutID(), "stable", "Executing", "Dispatched"), []string{"skip a", "skip b", "skip c"}},
		{"activating", observed(e.rolloutID(), "stable", "Executing", "Activating"), []string{"skip a", "skip b", "skip c"}},
		{"confirming", observed(e.rolloutID(), "stable", "Executing", "ConfirmWindow"),
			[]string{"skip a", "skip b", "skip c"}},
		{"failed", observed(e.rolloutID(), "stable", "Executing", "Failed"),
			[]string{"halt_rollout ", "skip a", "skip b", "skip c"}},
		{"failed and halted", observed(e.rolloutID(), "stable", "Halted", "Failed"), []string{"skip a", "skip b", "skip c"}},
		{"vanished channel", observed(e.rolloutID(), "gone", "Executing", "Dispatched"),
			[]string{"channel_unknown gone", "dispatch_host a", "skip b", "skip c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines, code := e.tick(t, c.observed)
			var got []string
			for _, l := range lines[1:] {
				host, _ := l["host"].(string)
				channel, _ := l["channel"].(string)
				got = append(got, l["action"].(string)+" "+host+channel)
			}
			if code != 0 || !reflect.DeepEqual(got, c.want) {
				t.Errorf("exit %d, actions %q, want %q\n%v", code, got, c.want, lines)
			}
		})
	}
}

func TestTickExitCodes(t *testing.T) {
	e := serialEstate(t, "a")
	if lines, code := e.tick(t, nothingObserved); code != 0 || len(lines) != 1 {
		t.Errorf("nothing observed: exit %d %v", code, lines)
	}
	if _, code := e.tick(t, `{`); code != 2 {
		t.Errorf("observed.json is broken: exit %d, want 2", code)
	}
	if _, code := e.tick(t, nothingObserved, "--trust-file", e.path("none")); code != 2 {
		t.Errorf("no trust file: exit %d, want 2", code)
	}
	trust, err := os.ReadFile(e.path("trust.json"))
	if err != nil {
		t.Fatal(err)
	}
	e.write("typo.json", bytes.Replace(trust, []byte(`"cacheKeys"`), []byte(`"cacheKey"`), 1))
	out, _, _ := typed(t, t.Context(), "tick", "--artifact", e.path("none"), "--signature", e.path("none"), "--trust-file",
		e.path("typo.json"), "--observed", e.path("observed.json"))
	if !strings.Contains(out, `"cacheKey" is not read`) {
		t.Errorf("misspelt member of the trust file (T10): %s", out)
	}
	if _, code := e.tick(t, nothingObserved, "--artifact", e.path("none")); code != 2 {
		t.Errorf("no artifact: exit %d, want 2", code)
	}
	// it would wrap around to a minute
	if _, code := e.tick(t, nothingObserved, "--freshness-window-secs", "18446744134"); code != 2 {
		t.Errorf("a window too long: exit %d, want 2", code)
	}
	if _, code := e.tick(t, nothingObserved, "--freshness-window-secs", "4294967295"); code != 0 {
		t.Errorf("the longest window: exit %d, want 0", code)
	}
	lines, code := e.tick(t, nothingObserved, "--freshness-window-secs", "60")
	if code != 1 || len(lines) != 1 || lines[0]["verify_ok"] != false || lines[0]["reason"] != "stale" ||
		lines[0]["event"] != "tick" {
		t.Errorf("stale: exit %d %v", code, lines)
	}
	sig := filepath.Join(e.release, fleet.FleetName+".sig")
	if err := os.WriteFile(sig, make([]byte, 64), 0o600); err != nil {
		t.Fatal(err)
	}
	if lines, code := e.tick(t, nothingObserved); code != 1 || lines[0]["reason"] != "bad-signature" {
		t.Errorf("bad signature: exit %d %v", code, lines)
	}
}

func TestBackupOfADatabaseInUse(t *testing.T) {
	e := serialEstate(t, "a")
	p := e.serve()
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
	out, code, err := typed(t, t.Context(), "backup", "--db-path", e.path("state/state.db"), "--output", e.path("copy.db"))
	if code != 0 {
		t.Fatalf("exit %d %v: %s", code, err, out)
	}
	db, err := sql.Open("sqlite3", "file:"+e.path("copy.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var hosts int
	if err := db.QueryRow("SELECT count(*) FROM pending_confirms WHERE hostname = 'a' AND state = 'pending'").
		Scan(&hosts); err != nil || hosts != 1 {
		t.Errorf("the copy has %d dispatches: %v", hosts, err)
	}
	if _, code, _ := typed(t, t.Context(), "backup", "--db-path", e.path("state/state.db"), "--output",
		e.path("copy.db")); code != 1 {
		t.Errorf("over an existing file: exit %d, want 1", code)
	}
	if _, code, _ := typed(t, t.Context(), "backup", "--db-path", e.path("none.db"), "--output",
		e.path("copy2.db")); code != 1 {
		t.Errorf("of no database: exit %d, want 1", code)
	}
}

// SIGHUP ends a process that does not ask for it.
func TestAHangupReadsTheFilesAndAsksTheSource(t *testing.T) {
	e := serialEstate(t, "a")
	cfg := e.config()
	hangups, log := make(chan os.Signal), &logBuffer{}
	cfg.Reload, cfg.Listen, cfg.Log = hangups, "127.0.0.1:0", zerolog.New(log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	refreshed := func(times int) {
		for deadline := time.Now().Add(10 * time.Second); strings.Count(log.String(),
			"snapshot refreshed") < times; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not refreshed %d times: %s", times, log)
			}
		}
	}
	refreshed(1)
	e.advance(2)
	e.write("client-ca.pem", []byte("no certificate"))
	hangups <- syscall.SIGHUP
	refreshed(2)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if text := log.String(); !strings.Contains(text, "client CA not reloaded") ||
		strings.Count(text, "snapshot refreshed") != 2 {
		t.Error(text)
	}
}
