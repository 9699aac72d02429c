package notify

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// opened is a book for one receiver, with what became of its notices.
func opened(t *testing.T, dir string, kinds ...string) (*Book, *[]string) {
	t.Helper()
	if kinds == nil {
		kinds = Kinds
	}
	ended := &[]string{}
	b, err := OpenBook(dir, kinds, []string{"r"}, func(_, outcome string) { *ended = append(*ended, outcome) })
	if err != nil {
		t.Fatal(err)
	}
	return b, ended
}

func looked(t *testing.T, b *Book, at time.Time, holding ...Condition) {
	t.Helper()
	if err := b.Look(holding, at); err != nil {
		t.Fatal(err)
	}
}

// told takes what waits, as if it were delivered.
func told(t *testing.T, b *Book) []string {
	t.Helper()
	out := []string{}
	for {
		l, ok := b.due("r")
		if !ok {
			return out
		}
		line := l.Notice.Summary()
		if len(l.Notice.Hosts) > 0 {
			line += " " + strings.Join(l.Notice.Hosts, ",")
		}
		out = append(out, line)
		if err := b.tried("r", l.Notice.ID, nil, l.Due); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAConditionIsToldOnceAndItsEndOnce(t *testing.T) {
	dir := t.TempDir()
	b, _ := opened(t, dir)
	halted := Condition{Kind: KindHalted, Channel: "stable", Subject: "i1"}
	silent := func(hosts ...string) Condition {
		return Condition{Kind: KindHostSilent, Channel: "stable", Hosts: hosts}
	}
	for i, step := range []struct {
		holding []Condition
		want    []string
	}{
		{[]Condition{halted}, []string{"stable: rollout halted"}},
		{[]Condition{halted}, []string{}},
		{[]Condition{halted, silent("a", "b")}, []string{"stable: 2 hosts are silent a,b"}},
		{[]Condition{halted, silent("a", "b", "c")}, []string{"stable: 1 host is silent c"}},
		{[]Condition{halted, silent("c")}, []string{}},
		{[]Condition{silent("c")}, []string{"over: stable: rollout halted"}},
		{nil, []string{"over: stable: 1 host is silent c"}},
		{nil, []string{}},
	} {
		looked(t, b, noon.Add(time.Duration(i)*time.Minute), step.holding...)
		if got := told(t, b); !slices.Equal(got, step.want) {
			t.Errorf("step %d: told %q, want %q", i, got, step.want)
		}
		b, _ = opened(t, dir) // a restart changes nothing of it
	}
}

func TestARolloutConvergesOnceAlsoAfterAnEmptyDatabase(t *testing.T) {
	b, _ := opened(t, t.TempDir())
	converged := func(intent string) Condition {
		return Condition{Kind: KindConverged, Channel: "stable", Subject: intent}
	}
	for i, step := range []struct {
		holding []Condition
		want    []string
	}{
		{[]Condition{converged("i1")}, []string{}}, // it had before anybody was to be told
		{[]Condition{converged("i2")}, []string{"stable: rollout converged"}},
		{nil, []string{}},
		{[]Condition{converged("i2")}, []string{}},
		{[]Condition{converged("i3")}, []string{"stable: rollout converged"}},
	} {
		looked(t, b, noon.Add(time.Duration(i)*time.Minute), step.holding...)
		if got := told(t, b); !slices.Equal(got, step.want) {
			t.Errorf("step %d: told %q, want %q", i, got, step.want)
		}
	}
}

func TestOnlyKindsThatAreAskedForAreTold(t *testing.T) {
	b, _ := opened(t, t.TempDir(), KindSource)
	looked(t, b, noon, Condition{Kind: KindStale, Channel: "stable"}, Condition{Kind: KindSource})
	if got := told(t, b); !slices.Equal(got, []string{"source gives no release"}) {
		t.Errorf("told %q", got)
	}
}

func TestAQueueIsBoundedAndSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	b, ended := opened(t, dir)
	for i := range MaxQueue + 2 {
		b.queue(Notice{Kind: KindConverged, Subject: fmt.Sprint(i)}, noon.Add(time.Duration(i)*time.Second))
	}
	looked(t, b, noon)
	if !slices.Equal(*ended, []string{"dropped", "dropped"}) {
		t.Errorf("%v", *ended)
	}
	b, _ = opened(t, dir)
	first, _ := b.due("r")
	if n := b.Waiting()["r"]; n != MaxQueue || first.Notice.Subject != "2" {
		t.Errorf("%d wait, %s first", n, first.Notice.Subject)
	}
}

func TestAFailedDeliveryIsTriedAgainUntilItIsGivenUp(t *testing.T) {
	b, ended := opened(t, t.TempDir())
	looked(t, b, noon, Condition{Kind: KindSource})
	down := errors.New("down")
	now, attempts := noon, 0
	for ; ; attempts++ {
		l, ok := b.due("r")
		if !ok {
			break
		}
		if l.Due.Before(now) || l.Due.Sub(now) > time.Hour {
			t.Fatalf("attempt %d is due %s after the one before", attempts, l.Due.Sub(now))
		}
		now = l.Due
		if err := b.tried("r", l.Notice.ID, down, now); err != nil {
			t.Fatal(err)
		}
	}
	if age := now.Sub(noon); age < giveUp || age > giveUp+2*time.Hour || (*ended)[len(*ended)-1] != "dropped" {
		t.Errorf("given up after %s and %d attempts: %v", age, attempts, (*ended)[len(*ended)-1])
	}
}

func TestABrokenBookIsBegunAnew(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, bookName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBook(dir, Kinds, []string{"r"}, func(string, string) {})
	if err == nil || !strings.Contains(err.Error(), bookName) {
		t.Errorf("error %v", err)
	}
	looked(t, b, noon, Condition{Kind: KindSource})
	if got := told(t, b); len(got) != 1 {
		t.Errorf("told %q", got)
	}
}

// TestWebhookSignature takes the vector of the specification's own library: secret, id, time and body.
func TestWebhookSignature(t *testing.T) {
	key, err := webhookKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got := webhookSignature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if got != "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Error(got)
	}
	for _, bad := range []string{"", "short", "whsec_" + strings.Repeat("A", 200), "not base64 at all, but long enough"} {
		if _, err := webhookKey(bad); err == nil {
			t.Errorf("%q was taken for a secret", bad)
		}
	}
}

// TestWebhook delivers twice, as after an answer that was lost: the receiver sees one id, and signatures that verify.
func TestWebhook(t *testing.T) {
	const secret = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	var ids []string
	var last []byte
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last, _ = io.ReadAll(r.Body)
		id, at := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
		ids = append(ids, id)
		key, err := webhookKey(secret)
		if err != nil || r.Header.Get("Webhook-Signature") != "v1,"+webhookSignature(key, id, at, last) {
			t.Error("the signature does not verify")
		}
		if len(ids) == 1 {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}
	}))
	defer hook.Close()
	w := &Webhook{URL: hook.URL, Secret: func() (string, error) { return secret, nil }}
	n := noticeOf(Condition{Kind: KindHalted, Channel: "stable", Subject: "i1", Rollout: "r1", Reason: "why"}, nil, noon,
		false)
	if err := w.Deliver(t.Context(), n); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("a redirect: %v", err)
	}
	if err := w.Deliver(t.Context(), n); err != nil {
		t.Error(err)
	}
	if len(ids) != 2 || ids[0] != ids[1] || !strings.HasPrefix(ids[0], "msg_") {
		t.Errorf("ids %q", ids)
	}
	var got body
	if err := json.Unmarshal(last, &got); err != nil {
		t.Fatal(err)
	}
	if got.Type != "rollout.halted" || got.Data.Summary != "stable: rollout halted" || got.Data.Rollout != "r1" ||
		got.Data.Reason != "why" || got.Data.Page != "docs/alerts/rollout-halted.md" {
		t.Errorf("%+v", got)
	}
}

// flaky is a receiver that fails a few times.
type flaky struct {
	name  string
	fails int
	took  chan Notice
}

func (f *flaky) Name() string { return f.name }

func (f *flaky) Deliver(_ context.Context, n Notice) error {
	if f.fails--; f.fails >= 0 {
		return errors.New("down")
	}
	f.took <- n
	return nil
}

// TestAReceiverThatIsDownHoldsUpNobody runs in virtual time.
func TestAReceiverThatIsDownHoldsUpNobody(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b, err := OpenBook(dir, Kinds, []string{"good", "bad"}, func(string, string) {})
		if err != nil {
			t.Fatal(err)
		}
		good := &flaky{name: "good", took: make(chan Notice, 1)}
		bad := &flaky{name: "bad", took: make(chan Notice, 1), fails: 4}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&Teller{Book: b, Log: zerolog.Nop(), Receivers: []Receiver{bad, good}}).Run(ctx)
		}()
		start := time.Now()
		looked(t, b, start, Condition{Kind: KindSource})
		<-good.took
		if waited := time.Since(start); waited > 0 {
			t.Errorf("the good one waited %s", waited)
		}
		<-bad.took
		if waited := time.Since(start); waited != (5+10+20+40)*time.Second {
			t.Errorf("the bad one was told after %s", waited)
		}
		cancel()
		<-done
	})
}

func TestAlertmanagerIsToldWhatHolds(t *testing.T) {
	var got []alert
	var path, auth string
	am := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		path, auth = r.URL.Path, r.Header.Get("Authorization")
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
	}))
	defer am.Close()
	a := &Alertmanager{URL: am.URL + "/", Token: func() (string, error) { return "s3cret", nil }}
	silent := Condition{Kind: KindHostSilent, Channel: "stable", Hosts: []string{"a", "b"}, Since: noon}
	err := a.tell(t.Context(), []Condition{silent}, noon.Add(time.Hour))
	if err != nil || path != "/api/v2/alerts" || auth != "Bearer s3cret" || len(got) != 1 {
		t.Fatalf("%v %s %s %v", err, path, auth, got)
	}
	if g := got[0]; g.Labels["alertname"] != "NixfleetHostsSilent" || g.Labels["channel"] != "stable" ||
		g.StartsAt != "2026-03-01T12:00:00Z" || g.EndsAt != "2026-03-01T13:05:00Z" || g.Annotations["hosts"] != "a b" {
		t.Errorf("%+v", g)
	}
}

// TestMail speaks to a server that takes one mail, and looks at what a reason can do to its headers.
func TestMail(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	lines := make(chan []string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var got []string
		in, inData := bufio.NewScanner(conn), false
		fmt.Fprint(conn, "220 ready\r\n")
		for in.Scan() {
			line := in.Text()
			got = append(got, line)
			switch {
			case inData && line == ".":
				inData = false
				fmt.Fprint(conn, "250 taken\r\n")
			case inData:
			case line == "DATA":
				inData = true
				fmt.Fprint(conn, "354 go on\r\n")
			case line == "QUIT":
				fmt.Fprint(conn, "221 bye\r\n")
				lines <- got
				return
			default:
				fmt.Fprint(conn, "250 good\r\n")
			}
		}
		lines <- got
	}()
	server, err := ParseServer("smtp://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	m := &Mail{Server: server, From: "fleet@example.com", To: []string{"a@example.com", "b@example.com"}}
	hostile := Condition{Kind: KindCertificate, Subject: "operator x\r\nBcc: evil@example.com", Reason: "ends"}
	n := noticeOf(hostile, nil, noon, false)
	if err := m.Deliver(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	got := <-lines
	for _, want := range []string{"MAIL FROM:<fleet@example.com>", "RCPT TO:<a@example.com>", "RCPT TO:<b@example.com>",
		"Message-ID: <" + n.ID + "@example.com>", "reason: ends"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
	head := got[:slices.Index(got, "")]
	if slices.ContainsFunc(head, func(l string) bool { return strings.HasPrefix(l, "Bcc") }) {
		t.Errorf("a subject made a header: %q", head)
	}
}

func TestAddressesThatAreRefused(t *testing.T) {
	for text, open := range map[string]bool{"http://hooks.example.com/x": false, "ftp://x": true,
		"https://user:word@hooks.example.com": true, "https://": true, "://": true} {
		if CheckURL(text, open) == nil {
			t.Errorf("%s was accepted", text)
		}
	}
	for _, text := range []string{"https://hooks.example.com/x", "http://127.0.0.1:9/x", "http://localhost/x"} {
		if err := CheckURL(text, false); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"smtp://a:b@mail.example.com", "imap://mail.example.com", "smtps://", "smtp://m/x"} {
		if _, err := ParseServer(text); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
	for _, text := range []string{"", "a", "A <a@example.com>", "a@example.com\r\nBcc: b@example.com"} {
		if CheckAddress(text) == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
