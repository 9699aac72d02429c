package cp

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"nixfleet/roles/cp/page"
	"nixfleet/roles/protocol"
)

// The page in a real browser, which NIXFLEET_TEST_BROWSER names. NIXFLEET_TEST_PICTURES
// names a directory for screenshots, and NIXFLEET_TEST_AXE axe-core's file axe.min.js, with
// which the pages are looked at besides.

// dashboardSite is a control plane whose page is served on loopback, as `dashboard` does it.
type dashboardSite struct {
	*plane
	site string
}

// serveDashboard is a fleet in which web-01 was given its target and the others wait.
func serveDashboard(t *testing.T) *dashboardSite {
	t.Helper()
	hosts := []string{"web-01", "web-02", "web-03", "db-01"}
	e := newEstate(t, hosts...)
	soak := uint32(600)
	e.fleet.Waves["stable"][0].SoakSeconds = &soak
	e.fleet.Hosts["db-01"].Tags = []string{"database"}
	e.publish()
	p := e.serve()
	for _, host := range hosts {
		p.checkin(p.agent(host), e.state(host, closureOf(host, 0)), 0)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	operator := p.operator()
	web := &http.Server{Handler: page.Workstation(operator, listener.Addr().String(), "the-key"),
		ReadHeaderTimeout: patience}
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()
	t.Cleanup(func() {
		web.Close()
		<-ended
	})
	return &dashboardSite{p, "http://" + listener.Addr().String()}
}

// enter opens the page with the key and leaves the browser with its cookie.
func (s *dashboardSite) enter(b *tab) {
	s.t.Helper()
	b.visit(s.site + page.EnterPath + "?key=the-key")
	if place := b.eval("location.href"); place != s.site+"/" {
		s.t.Errorf("after the key the address is %v", place)
	}
}

// TestBrowser is an operator's walk: look, filter, follow a rollout live, pause and resume it, see
// it halt, and read why.
func TestBrowser(t *testing.T) {
	c := startChromium(t)
	s := serveDashboard(t)
	b := c.open(1280, 900, "light")
	s.enter(b)
	b.shows("What moves now")
	b.shows("not open yet")
	b.until("live", "document.getElementById('lamp').dataset.state === 'live'")
	b.picture("overview")

	// Every number links to what it counts.
	b.click("a[href='/hosts?state=waiting']")
	b.shows("3 hosts, the worst first")
	b.eval("document.querySelector('input[name=host]').value = 'db-*'")
	b.click("form.filter button")
	b.shows("1 host, the worst first")
	if rows := b.eval("document.querySelectorAll('main tbody tr').length"); rows != 1.0 {
		t.Errorf("%v rows are filtered for db-*", rows)
	}
	b.eval("document.querySelector('#q').value = 'database'")
	b.click(".search button")
	b.shows("db-01")
	b.picture("hosts")

	rollout := s.site + "/rollouts/" + s.rolloutID()
	b.visit(rollout)
	b.shows("Dispatched")
	b.click("a.act.pause")
	b.until("asked for a reason", "!!document.querySelector('textarea[name=reason]')")
	b.eval("document.querySelector('textarea').value = 'a <b> & c'")
	b.click("input[name=sure]")
	b.picture("pause")
	b.click("form.ask button")
	b.shows("The rollout is paused.")
	b.shows("pause by operator-jo: a <b> & c")
	b.click("a.act.resume")
	b.until("asked for a reason", "!!document.querySelector('textarea[name=reason]')")
	b.eval("document.querySelector('textarea').value = 'go on'")
	b.click("input[name=sure]")
	b.click("form.ask button")
	b.shows("The rollout is resumed.")

	// What happens is shown without a reload.
	b.until("live", "document.getElementById('lamp').dataset.state === 'live'")
	b.eval("window.sameDocument = true; document.querySelector('h2').scrollIntoView()")
	exit := int32(4)
	failed := protocol.ActivationFailed{Phase: "switch", ExitCode: &exit}
	if err := s.report(s.agent("web-01"), "web-01", s.hostKeys["web-01"], protocol.EventActivationFailed,
		failed); err != nil {
		t.Fatal(err)
	}
	b.until("halted", "document.querySelector('h1 .badge').textContent === 'Halted'")
	if b.eval("window.sameDocument") != true {
		t.Error("the page was loaded anew to show the halt")
	}
	b.picture("halted")
	b.visit(s.site + "/hosts/web-01")
	b.shows("Why it failed")
	b.shows("exit code 4")
	b.picture("host")
	c.quiet()
}

// TestBrowserWithoutScript: all of it can be read and done without the script.
func TestBrowserWithoutScript(t *testing.T) {
	c := startChromium(t)
	s := serveDashboard(t)
	b := c.open(1280, 900, "light")
	b.do("Emulation.setScriptExecutionDisabled", map[string]any{"value": true})
	s.enter(b)
	for path, words := range map[string]string{
		"/": "What moves now", "/hosts?tag=database": "db-01", "/rollouts/" + s.rolloutID(): "What comes next",
		"/events": "host-dispatched", "/certificates": "operator-jo",
	} {
		b.visit(s.site + path)
		if text := b.text(); !strings.Contains(text, words) {
			t.Errorf("%s without script: %s", path, text)
		}
	}
	b.visit(s.site)
	if b.eval("!!document.querySelector('#lamp[data-state=off]')") != true {
		t.Error("the script ran")
	}
	b.visit(s.site + "/rollouts/" + s.rolloutID() + "/act/pause")
	b.eval("document.querySelector('textarea').value = 'no script'")
	b.click("input[name=sure]")
	b.click("form.ask button")
	b.shows("The rollout is paused.")
	c.quiet()
}

// judged are the pages that are looked at for everybody's use of them.
func (s *dashboardSite) judged() []string {
	return []string{"/", "/hosts", "/hosts/web-01", "/rollouts", "/rollouts/" + s.rolloutID(), "/releases",
		"/certificates", "/events", "/audit", "/rollouts/" + s.rolloutID() + "/act/pause", "/hosts/none"}
}

// TestBrowserPhone: no page is wider than a phone; what is wide scrolls within itself.
func TestBrowserPhone(t *testing.T) {
	c := startChromium(t)
	s := serveDashboard(t)
	b := c.open(360, 740, "dark")
	s.enter(b)
	for _, path := range s.judged() {
		b.visit(s.site + path)
		if wide := b.eval("document.documentElement.scrollWidth"); wide != 360.0 {
			t.Errorf("%s is %v wide on a screen of 360", path, wide)
		}
	}
	b.visit(s.site)
	b.picture("phone")
	c.quiet("404") // the page that is not there
}

// TestBrowserForEverybody holds every page to what a screen reader and weak eyes need: a
// title, a language, one main part and one heading, names for what can be used, headers for
// columns, and contrast of 4.5 to 1 in light and dark.
func TestBrowserForEverybody(t *testing.T) {
	c := startChromium(t)
	s := serveDashboard(t)
	axe := ""
	if file := os.Getenv("NIXFLEET_TEST_AXE"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		axe = string(text)
	}
	first := true
	for _, scheme := range []string{"light", "dark"} {
		b := c.open(1280, 900, scheme)
		if first {
			s.enter(b)
			first = false
		}
		for _, path := range s.judged() {
			b.visit(s.site + path)
			if found := b.eval(judge); found != "[]" {
				t.Errorf("%s, %s: %v", path, scheme, found)
			}
			if axe != "" {
				b.eval(axe + "; undefined")
				found := b.eval(`axe.run().then((r) => JSON.stringify(r.violations.map((v) =>
					[v.id, v.impact, v.nodes.map((n) => n.html).slice(0, 3)])))`)
				if found != "[]" {
					t.Errorf("%s, %s, by axe-core: %v", path, scheme, found)
				}
			}
		}
	}
	c.quiet("404")
}

// TestBrowserKeyboard: the first key leads past the navigation, and what is in focus can be seen.
func TestBrowserKeyboard(t *testing.T) {
	c := startChromium(t)
	s := serveDashboard(t)
	b := c.open(1280, 900, "light")
	s.enter(b)
	b.do("Page.bringToFront", nil)
	key := func(name string, code int) {
		for _, kind := range []string{"rawKeyDown", "char", "keyUp"} {
			if kind == "char" && name != "Enter" {
				continue
			}
			params := map[string]any{"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code}
			if name == "Enter" {
				params["text"] = "\r"
			}
			b.do("Input.dispatchKeyEvent", params)
		}
	}
	key("Tab", 9)
	b.until("at the link that skips", "document.activeElement.className === 'skip'")
	if shown := b.eval("document.activeElement.getBoundingClientRect().width > 50"); shown != true {
		t.Error("the link that skips cannot be seen in focus")
	}
	key("Enter", 13)
	b.until("at the main part", "document.activeElement.id === 'main'")
	key("Tab", 9)
	b.until("at the first number", "document.activeElement.getAttribute('href') === '/hosts'")
	if outline := b.eval("getComputedStyle(document.activeElement).outlineStyle"); outline != "solid" {
		t.Errorf("what is in focus has the outline %v", outline)
	}
	key("Enter", 13)
	b.shows("4 hosts, the worst first")
	c.quiet()
}

// judge lists what is wrong with a page, as JSON.
const judge = `(() => {
	const wrong = [], say = (what, e) => wrong.push(what + (e ? ' ' + e.outerHTML.slice(0, 120) : ''));
	const all = (q) => [...document.querySelectorAll(q)];
	if (!document.documentElement.lang) say('no language');
	if (!document.title) say('no title');
	for (const q of ['main', 'h1', 'header']) if (all(q).length !== 1) say(all(q).length + ' of ' + q);
	for (const e of all('nav, form[role=search] input')) {
		if (!e.getAttribute('aria-label') && !(e.labels && e.labels.length)) say('no label', e);
	}
	for (const e of all('input:not([type=hidden]), textarea, select')) if (!e.labels.length) say('no label', e);
	for (const e of all('svg')) if (e.getAttribute('role') !== 'img' || !e.getAttribute('aria-label')) say('no words', e);
	for (const e of all('a, button, summary')) {
		if (!e.textContent.trim() && !e.getAttribute('aria-label')) say('no name', e);
	}
	for (const e of all('th')) if (!e.scope) say('no scope', e);
	const ids = all('[id]').map((e) => e.id);
	for (const id of new Set(ids)) if (ids.filter((i) => i === id).length > 1) say('two of #' + id);
	for (const e of all('[aria-labelledby], [aria-describedby]')) {
		const id = e.getAttribute('aria-labelledby') || e.getAttribute('aria-describedby');
		if (!document.getElementById(id)) say('no #' + id, e);
	}
	let level = 0;
	for (const e of all('h1, h2, h3, h4')) {
		const n = Number(e.tagName[1]);
		if (n > level + 1) say('a heading is skipped before', e);
		level = n;
	}
	const numbers = (c) => c.match(/[\d.]+/g).map(Number);
	const light = (c) => {
		const curve = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
		const [r, g, b] = c.slice(0, 3).map((v) => curve(v / 255));
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const behind = (e) => {
		for (; e; e = e.parentElement) {
			const c = numbers(getComputedStyle(e).backgroundColor);
			if (c.length < 4 || c[3] === 1) return c;
		}
		return [255, 255, 255];
	};
	for (const e of all('body *')) {
		if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
		if (!e.checkVisibility() || ['SCRIPT', 'STYLE', 'NOSCRIPT', 'OPTION'].includes(e.tagName)) continue;
		const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))];
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (ratio < 4.5) say('contrast of ' + ratio.toFixed(2), e);
	}
	return JSON.stringify(wrong);
})()`

// click clicks on what a selector names.
func (b *tab) click(selector string) {
	b.t.Helper()
	name, err := json.Marshal(selector)
	if err != nil {
		b.t.Fatal(err)
	}
	b.until("with "+selector, fmt.Sprintf("!!document.querySelector(%s)", name))
	if strings.Contains(selector, "input") {
		b.eval(fmt.Sprintf("document.querySelector(%s).click()", name))
		return
	}
	// What else is clicked leads to another page, which may come before the answer does.
	before := b.eval("performance.timeOrigin")
	_, _ = b.tryEval(fmt.Sprintf("document.querySelector(%s).click()", name)) // what follows tells
	b.until("past a click on "+selector,
		fmt.Sprintf("performance.timeOrigin !== %v && document.readyState === 'complete'", before))
}
